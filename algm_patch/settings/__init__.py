"""Settings of a patched model: their checks, their files, the paper's presets."""

from .presets import presets
from .settings import Settings

__all__ = ["Settings", "presets"]
