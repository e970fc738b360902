"""Take imports from the former place of DINOv2's and open_clip's adapters, for one release."""

from typing import Any

from ..deprecated import warn_of
from . import dinov2, open_clip

MOVED: dict[str, Any] = {
    "DinoBlock": dinov2,
    "ClipBlock": open_clip,
    "CustomResidualAttentionBlock": open_clip,
    "ResidualAttentionBlock": open_clip,
}


def __getattr__(name: str) -> Any:
    if name not in MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = MOVED[name].__name__
    warn_of(f"{__name__}.{name}", f"{place}.{name}")
    return getattr(MOVED[name], name)
