"""Which models of timm and transformers are patched, and why the others are not."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..apply import apply_algm

PATCHED = "patched"


# What fills a weight.
FILLS = frozenset(
    getattr(Tensor, name)
    for name in ("add_", "clamp_", "copy_", "div_", "erfinv_", "fill_", "mul_", "normal_", "sub_", "uniform_", "zero_")
)


class Unfilled(TorchFunctionMode):
    """Leave weights on the meta device unfilled: they have no values, and filling takes half the time of a model."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FILLS or getattr(func, "__module__", None) == "torch.nn.init":
            filled = args[0] if args else kwargs["tensor"]
            if isinstance(filled, Tensor) and filled.is_meta:
                return filled
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Outcome:
    """Of patching one model.

    Attributes:
        name: of timm's model, or of transformers' model type.
        cls: the name of its class.
        found: "patched"; or why not, without the model's own name.
        model: patched or not; on the meta device. None if it could not be built.
    """

    name: str
    cls: str
    found: str
    model: nn.Module | None


def timm_models(names: Sequence[str] | None = None) -> Iterator[Outcome]:
    """Of every model of timm, or of those named."""
    import timm

    for name in timm.list_models() if names is None else names:
        yield outcome(name, name, partial(timm.create_model, name))


def transformers_models() -> Iterator[Outcome]:
    """Of every type of transformers' models that takes pixels, in its default configuration."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING, MODEL_MAPPING_NAMES

    for name in MODEL_MAPPING_NAMES:
        config = CONFIG_MAPPING[name]
        try:
            found = MODEL_MAPPING[config]
            cls: Any = found[0] if isinstance(found, (tuple, list)) else found
            takes_pixels = cls.main_input_name == "pixel_values"
        except (ImportError, ValueError):  # needs a library for audio or text
            continue
        if takes_pixels:
            yield outcome(name, cls.__name__, partial(build, cls, config))


def build(cls: Any, config: Any) -> Any:
    return cls(config())


def outcome(name: str, cls: str, make: Callable[[], Any]) -> Outcome:
    try:
        with (
            torch.device("meta"),
            Unfilled(),
            warnings.catch_warnings(),
        ):  # only the structure, without memory for weights
            warnings.simplefilter("ignore")
            model = make()
    except Exception as error:  # of the constructor's own: it needs a library, data or a configuration
        return Outcome(name, cls, f"not built: {(str(error).strip() or type(error).__name__).splitlines()[0]}", None)
    try:
        apply_algm(model, clap_layer=1, gbm_layers=[])
    except ValueError as error:
        return Outcome(name, type(model).__name__, re.sub(r"^\S+ cannot be patched: ", "", str(error)), model)
    return Outcome(name, type(model).__name__, PATCHED, model)
