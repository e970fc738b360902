"""Take imports from the former place of DINOv2's and open_clip's adapters, for one release."""

from ..deprecated import warn_of
from .dinov2 import DinoBlock
from .open_clip import ClipBlock, CustomResidualAttentionBlock, ResidualAttentionBlock

__all__ = ["ClipBlock", "CustomResidualAttentionBlock", "DinoBlock", "ResidualAttentionBlock"]

warn_of("algm_patch.adapters.hub", "algm_patch.adapters.dinov2 and algm_patch.adapters.open_clip")
