"""ALGM: any plain Vision Transformer for dense prediction, faster with one line, on the weights it already has."""

__version__ = "0.1.0"

from .adapters import Adapter, register
from .calibrate import calibrate
from .drawing import contact_sheet, visualize
from .films import animate
from .merging import clap, gbm
from .pareto import pareto
from .passes import LayerTokens
from .patch import apply_algm, remove_algm
from .presets import presets
from .saved import load_settings
from .settings import Settings
from .showing import panels
from .tokens import TokenMap
from .tune import tune

__all__ = [
    "Adapter",
    "LayerTokens",
    "Settings",
    "TokenMap",
    "animate",
    "apply_algm",
    "calibrate",
    "clap",
    "contact_sheet",
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
