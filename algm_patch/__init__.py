"""ALGM: any plain Vision Transformer for dense prediction, faster with one line, on the weights it already has."""

from .calibrate import calibrate
from .merging import clap, gbm
from .patch import apply_algm, remove_algm
from .tokens import TokenMap
from .visualize import panels, visualize

__all__ = ["TokenMap", "apply_algm", "calibrate", "clap", "gbm", "panels", "remove_algm", "visualize"]
__version__ = "0.1.0"
