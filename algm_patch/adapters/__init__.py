"""What ALGM knows of other libraries: where their blocks split and which methods run them.

Everything is registered under the function it stands for, so that a subclass with a method of its own is not
mistaken for its parent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import Tensor, nn

from ..passes import LayerTokens


class Adapter(Protocol):
    """One block class as two halves. ``mlp_half(block, attention_half(block, x, ...))`` is the block's forward."""

    projection: str
    """Path, from the module that owns the blocks, to the patch projection, whose output is [B, D, H, W]."""

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any) -> Tensor:
        """To the end of the attention residual. Takes the arguments of the block's forward."""

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        """From there to the block's output."""

    @staticmethod
    def takes_mask(block: Any) -> bool:
        """Whether the block's attention takes ``tokens.attention_mask(...)``."""


ADAPTERS: dict[str, type[Adapter]] = {}
REFUSALS: dict[str, str] = {}
READERS: dict[str, Callable[..., Iterable[int]]] = {}


def register(forward: str) -> Callable[[type[Adapter]], type[Adapter]]:
    """Class decorator: an adapter for the blocks whose forward is the function of this path."""

    def add(adapter: type[Adapter]) -> type[Adapter]:
        ADAPTERS[forward] = adapter
        return adapter

    return add


def refuse(forward: str, reason: str) -> None:
    """Blocks whose forward is the function of this path cannot be patched."""
    REFUSALS[forward] = reason


def reads(method: str) -> Callable[[Callable[..., Iterable[int]]], Callable[..., Iterable[int]]]:
    """Decorator: given a call of the method of this path, the blocks (from 0) whose output it reads.

    The method must pass every other block's output on to the next block and nowhere else.
    """

    def add(blocks_read: Callable[..., Iterable[int]]) -> Callable[..., Iterable[int]]:
        READERS[method] = blocks_read
        return blocks_read

    return add


def path_of(function: Any) -> str:
    """The name that functions are registered under: module and qualified name."""
    return f"{getattr(function, '__module__', None)}.{getattr(function, '__qualname__', None)}"


def adapter_of(block: nn.Module) -> type[Adapter] | None:
    return ADAPTERS.get(path_of(unpatched(type(block)).forward))


def refusal_of(block: nn.Module) -> str | None:
    return REFUSALS.get(path_of(unpatched(type(block)).forward))


def unpatched(cls: type[nn.Module]) -> type[nn.Module]:
    """The class that a module had before it was patched."""
    return getattr(cls, "_algm_original", cls)


from . import timm as _timm  # noqa: E402, F401
