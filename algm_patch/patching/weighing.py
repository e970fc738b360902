"""Find out whether an adapter of someone's own lets the sizes of merged tokens weigh in attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..adapters.base import Adapter
from ..adapters.structure import Structure
from ..core.layer_tokens import LayerTokens
from .naming import class_name
from .unread_grid import OF_FORM

PACKAGE = __name__.partition(".")[0]


@dataclass(eq=False)
class Weighing:
    """Hold whether the adapter of a block was seen to use the bias that weighs merged keys."""

    seen: bool = False

    def watch(self, adapter: type[Adapter]) -> type[Adapter]:
        """Return the adapter, which raises ValueError where its attention half does not use the bias it is given."""
        return adapter if self.seen else watching(adapter, self)


def weighing_of(adapter: type[Adapter]) -> Weighing | None:
    """Return what watches an adapter; None for the library's own, and those that are proved."""
    own = adapter.__module__.partition(".")[0] == PACKAGE or issubclass(adapter, Structure)
    return None if own else Weighing()


def watching(adapter: type[Adapter], weighing: Weighing) -> type[Adapter]:
    """Return a subclass of an adapter whose attention half is watched, until it has used the bias once."""

    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any) -> Tensor:
        if tokens.key_bias is None or weighing.seen:
            return adapter.attention_half(block, x, tokens, *args, **kwargs)
        bias: Any = tokens.key_bias.as_subclass(WatchedBias)
        bias.weighing = weighing
        y = adapter.attention_half(block, x, replace(tokens, key_bias=bias), *args, **kwargs)
        if not weighing.seen:
            raise ValueError(
                f"proportional_attention=True (the default): {adapter.__qualname__}, the adapter of "
                f"{class_name(block)}, did not use the sizes of merged tokens. Let its attention add "
                "tokens.attention_mask(mask), or attention_mask(None) without a mask of its own, to the logits; if it "
                "takes no mask, set model.algm.proportional_attention = False"
            )
        return y

    return type(adapter.__name__, (adapter,), {"attention_half": staticmethod(attention_half)})


class WatchedBias(Tensor):
    """Tell a `Weighing` that something is computed with it.

    Attributes:
        weighing: is told.
    """

    weighing: Weighing

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function of torch, and note that it was unless it asks for the form."""
        if function not in OF_FORM:
            tree_map_only(cls, note_use, (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs or {})


def note_use(bias: WatchedBias) -> None:
    """Note that a bias was used."""
    bias.weighing.seen = True
