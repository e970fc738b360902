"""A census of the models of timm and transformers: which can be patched, and why the others cannot."""

from __future__ import annotations

import fnmatch
import re
import sys
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

# Methods that fill a weight.
FILLS = frozenset(
    getattr(Tensor, name)
    for name in ("add_", "clamp_", "copy_", "div_", "erfinv_", "fill_", "mul_", "normal_", "sub_", "uniform_", "zero_")
)


class Unfilled(TorchFunctionMode):
    """Leave weights on the meta device unfilled.

    They have no values, and to fill them takes half the time that a model takes to build.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FILLS or getattr(func, "__module__", None) == "torch.nn.init":
            filled = args[0] if args else kwargs["tensor"]
            if isinstance(filled, Tensor) and filled.is_meta:
                return filled
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Outcome:
    """Tell what became of patching one model.

    Attributes:
        name: of timm's model, or of transformers' model type.
        cls: the name of its class.
        found: "patched"; or the reason why not, without the model's own name.
        model: on the meta device, patched or not. None if it could not be built.
    """

    name: str
    cls: str
    found: str
    model: nn.Module | None


def timm_models(names: Sequence[str] | None = None) -> Iterator[Outcome]:
    """Yield the outcome of every model of timm, or of those named."""
    import timm

    for name in timm.list_models() if names is None else names:
        yield outcome(name, name, partial(timm.create_model, name))


def transformers_models(names: Sequence[str] | None = None) -> Iterator[Outcome]:
    """Yield the outcome of every model type of transformers, or of those named, that takes pixels.

    Each is built in its default configuration.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING, MODEL_MAPPING_NAMES

    for name in MODEL_MAPPING_NAMES if names is None else names:
        config = CONFIG_MAPPING[name]
        try:
            found = MODEL_MAPPING[config]
            cls: Any = found[0] if isinstance(found, (tuple, list)) else found
            takes_pixels = cls.main_input_name == "pixel_values"
        except (ImportError, ValueError):  # needs a library for audio or text
            continue
        if takes_pixels:
            yield outcome(name, cls.__name__, partial(build, cls, config))


def timm_names() -> list[str]:
    """Return the models of timm."""
    import timm

    names: list[str] = timm.list_models()
    return names


def transformers_names() -> list[str]:
    """Return the model types of transformers; none if it is not installed."""
    try:
        from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
    except ModuleNotFoundError:
        print("transformers is not installed: its models are left out", file=sys.stderr)
        return []
    return list(MODEL_MAPPING_NAMES)


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Return the names that patterns such as "vit_tiny_*" (a tag after a dot aside) match, in the order of these."""
    found = (name for pattern in patterns for name in fnmatch.filter(names, pattern.partition(".")[0]))
    return list(dict.fromkeys(found))


def build(cls: Any, config: Any) -> Any:
    """Return a model of transformers in its default configuration."""
    return cls(config())


def outcome(name: str, cls: str, make: Callable[[], Any]) -> Outcome:
    """Return what becomes of patching the model that ``make`` builds.

    Args:
        cls: the name to report in place of its class if it cannot be built.
    """
    try:
        # On the meta device: only the structure counts, and weights would take memory.
        with torch.device("meta"), Unfilled(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = make()
    except Exception as error:  # any that the constructor raises: it may need a library, data or a configuration
        return Outcome(name, cls, f"not built: {(str(error).strip() or type(error).__name__).splitlines()[0]}", None)
    try:
        apply_algm(model, clap_layer=1, gbm_layers=[])
    except ValueError as error:
        return Outcome(name, type(model).__name__, re.sub(r"^\S+ cannot be patched: ", "", str(error)), model)
    return Outcome(name, type(model).__name__, PATCHED, model)
