"""Read weights from files into modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import load_state_dict
from torch import Tensor, nn


class ModelError(ValueError):
    """Report a checkpoint that is not there or does not fit. The message says which and what was expected."""


def timm_backbone(name: str, weights: str | Path | None, size: int | tuple[int, int] | None) -> Any:
    """Return a trained model of timm without its head.

    Args:
        weights: a file; None: from the hub.
        size: (height, width) or side of the images in pixels; None: that of the checkpoint.

    Raises:
        ModelError: if there is no such model, or the weights or the size do not fit.
    """
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
    """Return the tensors of a safetensors file or of a checkpoint that timm can read."""
    if not path.is_file():
        raise ModelError(f"{path} is not there")
    try:
        return load_file(path) if path.suffix == ".safetensors" else load_state_dict(str(path))
    except (SafetensorError, RuntimeError, ValueError, OSError, EOFError) as error:
        raise ModelError(f"{path} cannot be read as weights: {error}") from error


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load the tensors of a file into a module, or raise ModelError."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(f"{path} does not fit: {error}") from error
