"""ALGM: any plain Vision Transformer for dense prediction, faster with one line, on the weights it already has."""

from importlib import import_module
from typing import Any

from ._version import __version__
from .adapters import Adapter, register
from .apply import apply_algm, remove_algm
from .deprecated import warn_of
from .handle import Algm
from .settings import Settings, presets
from .tuning.calibrate import calibrate
from .tuning.tune import tune
from .viz import visualize

__all__ = [
    "Adapter",
    "Algm",
    "Settings",
    "__version__",
    "apply_algm",
    "calibrate",
    "presets",
    "register",
    "remove_algm",
    "tune",
    "visualize",
]

# By the names that version 0.1 had here: the wings that have them now.
MOVED = {
    **dict.fromkeys(("clap", "gbm", "TokenMap"), "functional"),
    **dict.fromkeys(("panels", "contact_sheet", "animate", "pareto"), "viz"),
    "LayerTokens": "adapters",
}


def __getattr__(name: str) -> Any:
    if name == "load_settings":
        warn_of("algm_patch.load_settings", "Settings.load")
        return Settings.load
    if name in MOVED:
        warn_of(f"algm_patch.{name}", f"algm_patch.{MOVED[name]}.{name}")
        return getattr(import_module(f"{__name__}.{MOVED[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
