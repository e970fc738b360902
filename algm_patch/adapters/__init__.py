"""What is known of other libraries: where their blocks split, and which methods run them."""

from ..core.layer_tokens import LayerTokens
from . import eva01, hub, huggingface, huggingface_beit, mmseg, segmenter, timm  # noqa: F401, which register
from .base import Adapter
from .registry import register

__all__ = ["Adapter", "LayerTokens", "register"]
