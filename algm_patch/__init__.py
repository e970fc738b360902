"""ALGM: any plain Vision Transformer for dense prediction, faster with one line, on the weights it already has."""

from .adapters import Adapter, register
from .calibrate import calibrate
from .merging import clap, gbm
from .passes import LayerTokens
from .patch import apply_algm, remove_algm
from .tokens import TokenMap
from .visualize import panels, visualize

__all__ = [
    "Adapter",
    "LayerTokens",
    "TokenMap",
    "apply_algm",
    "calibrate",
    "clap",
    "gbm",
    "panels",
    "register",
    "remove_algm",
    "visualize",
]
__version__ = "0.1.0"
