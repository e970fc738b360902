"""ALGM: any plain Vision Transformer for dense prediction, faster with one line, on the weights it already has."""

__version__ = "0.1.0"

from .adapters import Adapter, register
from .calibrate import calibrate
from .merging import clap, gbm
from .pareto import pareto
from .passes import LayerTokens
from .patch import apply_algm, remove_algm
from .presets import presets
from .settings import Settings, load_settings
from .tokens import TokenMap
from .tune import tune
from .visualize import panels, visualize

__all__ = [
    "Adapter",
    "LayerTokens",
    "Settings",
    "TokenMap",
    "apply_algm",
    "calibrate",
    "clap",
    "gbm",
    "load_settings",
    "panels",
    "pareto",
    "presets",
    "register",
    "remove_algm",
    "tune",
    "visualize",
]
