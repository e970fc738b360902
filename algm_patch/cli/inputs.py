"""The models, settings and images that a command is given."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..apply import apply_algm
from ..settings import Settings


class CommandError(Exception):
    """Tell the user what cannot be used, and why."""


def load(options: Any) -> Any:
    """Return the model that the options choose, in eval mode."""
    import timm

    if not timm.is_model(options.model):
        raise CommandError(f"timm {timm.__version__} has no model {options.model!r}")
    if options.weights is not None and not options.weights.is_file():
        raise CommandError(f"{options.weights} is not there")
    model = timm.create_model(options.model, pretrained=options.weights is None)
    if options.weights is not None:
        try:
            timm.models.load_checkpoint(model, str(options.weights))
        except Exception as error:  # each file format has errors of its own
            raise CommandError(f"{options.weights} has no weights for {options.model}: {error}") from error
    if options.size:
        if not hasattr(model, "set_input_size"):
            raise CommandError(f"{options.model} has one input size only. Leave --size out")
        model.set_input_size(tuple(options.size))
    return model.eval()


def patched(options: Any, model: nn.Module | None = None) -> Any:
    """Return a model, or the one that the options choose, patched by their settings."""
    names = ("clap_layer", "gbm_layers", "tau", "merge_to")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    settings = Settings.load(options.settings) if options.settings else None
    return apply_algm(load(options) if model is None else model, settings=settings, **given)
