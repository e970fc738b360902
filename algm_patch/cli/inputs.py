"""The models and settings that a command is given."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..apply import apply_algm
from ..settings import Settings
from .census import PATCHED, outcome
from .weights import first_line, load_weights

NO_IMAGE_PART = (
    "{} takes images and texts, and has no part vision_model that takes images alone. Patch it in Python: "
    "apply_algm(model)"
)


class CommandError(Exception):
    """Tell the user what cannot be used, and why."""


def load(options: Any) -> Any:
    """Return the model that the options choose, in eval mode, on its device.

    That it can be patched is seen before weights are read.
    """
    import timm

    device = device_of(options.device)
    if timm.is_model(options.model):
        return load_timm(options).eval().to(device)
    if "/" not in options.model and not Path(options.model).is_dir():
        raise CommandError(
            f"timm {timm.__version__} has no model {options.model!r}, and models of transformers are given by a folder "
            "or a name with a slash, such as facebook/dinov2-small"
        )
    if options.weights is not None or options.size:
        raise CommandError("--weights and --size are of timm's models. Leave them out")
    return load_transformers(options.model).eval().to(device)


def device_of(name: str | None) -> torch.device:
    """Return a device by its name; without one, the first GPU of CUDA, or the CPU."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # as its kind pleases
        raise CommandError(f"--device {name} cannot be used: {first_line(error)}") from None


def load_timm(options: Any) -> Any:
    """Return a model of timm with the weights that the options choose."""
    import timm

    if options.weights is not None and not options.weights.is_file():
        raise CommandError(f"{options.weights} is not there")
    check_patchable(options.model, partial(timm.create_model, options.model))
    model = timm.create_model(options.model, pretrained=options.weights is None)
    if options.weights is not None:
        try:
            load_weights(model, options.weights)
        except ValueError as error:
            raise CommandError(f"{options.weights} has no weights for {options.model}: {error}") from None
    if options.size:
        if not hasattr(model, "set_input_size"):
            raise CommandError(f"{options.model} has one input size only. Leave --size out")
        model.set_input_size(tuple(options.size))
    return model


def load_transformers(name: str) -> Any:
    """Return a model of transformers from a folder or the hub: the bare model, or else the backbone.

    Of a model of images and texts, such as CLIP, it is the part that takes images.
    """
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel
        from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING, MODEL_MAPPING
    except ModuleNotFoundError:
        raise CommandError(f"{name} needs transformers: pip install transformers") from None

    try:
        config = AutoConfig.from_pretrained(name)
        cls: Any
        make: Any
        if type(config) in MODEL_MAPPING:
            cls, make = AutoModel, AutoModel.from_config
        elif type(config) in MODEL_FOR_BACKBONE_MAPPING:  # AutoBackbone would ask the hub for a folder
            cls = make = MODEL_FOR_BACKBONE_MAPPING[type(config)]
        else:
            raise CommandError(f"{name} is of the type {config.model_type}, and transformers has no bare model of it")
        check_patchable(name, partial(make, config))
        if hasattr(config, "text_config") and not hasattr(config, "vision_config"):
            raise CommandError(NO_IMAGE_PART.format(name))
        model = cls.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise CommandError(f"{name} is no model that transformers can load: {first_line(error)}") from None
    with suppress(OSError, ValueError):  # `prepare` warns if there is none
        AutoImageProcessor.from_pretrained(name)  # from the hub onto this machine, where `prepare` finds it
    return image_tower(model)


def image_tower(model: Any) -> Any:
    """Return the part of a model of images and texts that takes images; any other model as it is."""
    if not hasattr(model.config, "text_config"):
        return model
    tower = getattr(model, "vision_model", None)
    if tower is None:
        raise CommandError(NO_IMAGE_PART.format(type(model).__name__))
    tower.config.name_or_path = model.config.name_or_path  # whose image processor is the tower's
    return tower


def check_patchable(name: str, make: Callable[[], Any]) -> None:
    """Raise CommandError if the model that ``make`` builds cannot be patched."""
    found = outcome(name, name, make)
    if found.model is not None and found.found != PATCHED:
        raise CommandError(f"{name} cannot be patched: {found.found}")


def patched(options: Any, model: nn.Module | None = None) -> Any:
    """Return a model, or the one that the options choose, patched by their settings."""
    names = ("clap_layer", "gbm_layers", "tau", "merge_to")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    settings = Settings.load(options.settings) if options.settings else None
    return apply_algm(load(options) if model is None else model, settings=settings, **given)
