"""Normalisation of inputs: mean and standard deviation as the model, or the library it comes from, says."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..patching.naming import class_name
from ..patching.trunk_names import modules_around

WHITE = 255


def normalization(model: nn.Module, trunk: nn.Module) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [3, 1, 1] of the channels, for pixels from 0 to 1.

    The outermost module around ``trunk`` that tells them decides. A model of transformers tells them by the image
    processor of its checkpoint, if that is on this machine, or else by that of its class; a model of open_clip,
    mmengine or timm by its attributes. If no module does, they are ImageNet's.
    """
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    found = (numbers for part in modules_around(model, trunk) if (numbers := by_attributes(part)) is not None)
    mean, std = next(found, (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return as_channels(mean), as_channels(std)


def as_channels(numbers: Any) -> Tensor:
    """Return one number for each channel, or one for all, as [3, 1, 1]."""
    return torch.as_tensor(numbers, dtype=torch.float32).detach().cpu().reshape(-1, 1, 1).expand(3, 1, 1)


def by_attributes(part: nn.Module) -> tuple[Any, Any] | None:
    """Return mean and standard deviation that a module itself tells, for pixels from 0 to 1; None if it does not."""
    if (found := by_processor(part)) is not None:
        return found
    if getattr(part, "image_mean", None) is not None:  # open_clip
        return part.image_mean, part.image_std
    if isinstance(getattr(getattr(part, "data_preprocessor", None), "mean", None), Tensor):  # mmengine, for 0 to 255
        preprocessor: Any = part.data_preprocessor
        return preprocessor.mean / WHITE, preprocessor.std / WHITE
    if getattr(part, "pretrained_cfg", None):
        import timm.data

        config = timm.data.resolve_model_data_config(part)
        return config["mean"], config["std"]
    return None


def by_processor(part: Any) -> tuple[Any, Any] | None:
    """Return mean and standard deviation of the image processor of a model of transformers; None if there is none."""
    if sys.modules.get("transformers") is None:
        return None
    from transformers.configuration_utils import PretrainedConfig

    config = getattr(part, "config", None)
    if not isinstance(config, PretrainedConfig):
        return None
    defaults, saved = class_defaults(config), saved_processor(config)
    if saved is None and defaults is not None and config.name_or_path:
        name = config.name_or_path
        here = Path(name).is_dir()
        bring = f"processor.save_pretrained({name!r})" if here else f"AutoImageProcessor.from_pretrained({name!r})"
        warnings.warn(
            f"{name}, from which this {class_name(part)} was loaded, has no image processor on this machine. Images "
            f"are normalised by the default of its class, mean {defaults['image_mean']}. "
            f"{'Save' if here else 'Load'} it once with {bring}, or pass images as tensors",
            UserWarning,
            stacklevel=2,
        )
    processor = {**(defaults or {}), **(saved or {})}
    if processor.get("image_mean") is None:
        return None
    return mean_and_std(processor)


def mean_and_std(processor: dict[str, Any]) -> tuple[Any, Any]:
    """Return mean and standard deviation for pixels from 0 to 1 by which a processor treats pixels from 0 to 255.

    Args:
        processor: the processor's attributes by name.
    """
    white = WHITE * processor.get("rescale_factor", 1 / WHITE) if processor.get("do_rescale", True) else WHITE
    normalises = processor.get("do_normalize", True)
    mean, std = (torch.tensor(processor[name], dtype=torch.float32) for name in ("image_mean", "image_std"))
    return (mean if normalises else 0 * mean) / white, (std if normalises else std / std) / white


def saved_processor(config: Any) -> dict[str, Any] | None:
    """Return the attributes of the image processor of a checkpoint; None if it is not on this machine."""
    from transformers.image_processing_utils import BaseImageProcessor

    if not config.name_or_path:
        return None
    try:
        saved, _ = BaseImageProcessor.get_image_processor_dict(config.name_or_path, local_files_only=True)
    except OSError:
        return None
    return saved


def class_defaults(config: Any) -> dict[str, Any] | None:
    """Return the default attributes of the image processor that transformers pairs with a configuration.

    Transformers pairs some configurations with no processor, such as that of SigLIP's vision model. Then the processor
    of the same package counts. None if there is no processor, or it cannot be built without arguments.
    """
    auto: Any = import_module("transformers.models.auto.image_processing_auto")
    *_, package, _ = f"..{type(config).__module__}".split(".")
    paired = auto.IMAGE_PROCESSOR_MAPPING_NAMES
    kinds = [config.model_type, *(kind for kind in paired if auto.model_type_to_module_name(kind) == package)]
    names: Any = next((paired[kind] for kind in kinds if kind in paired), ())
    for name in names.values() if isinstance(names, dict) else names:
        if name is not None:
            try:
                return vars(auto.get_image_processor_class_from_name(name)())
            except (ImportError, TypeError):  # needs a library that is not here; or arguments, as timm's wrapper does
                continue
    return None
