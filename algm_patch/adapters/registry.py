"""The blocks, methods and decoders that are known, by the path of the function that each stands for.

A subclass with a method of its own is another function, and is not mistaken for its parent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from .base import Adapter

# The first releases whose blocks are known.
FLOORS = {"timm": "1.0.17", "transformers": "4.49"}
ADAPTERS: dict[str, type[Adapter]] = {}
REFUSALS: dict[str, str] = {}
READERS: dict[str, Callable[..., Iterable[int]]] = {}
HEADS: dict[str, str] = {}


def register(forward: str) -> Callable[[type[Adapter]], type[Adapter]]:
    """Class decorator: an :class:`Adapter` for the blocks whose forward is the function of this path.

    Args:
        forward: module and qualified name of the forward that the adapter's halves stand for, such as
            ``"mypackage.models.Block.forward"``. A subclass with a forward of its own is another function and needs an
            adapter of its own. The last registration holds.
    """

    def add(adapter: type[Adapter]) -> type[Adapter]:
        ADAPTERS[forward] = adapter
        return adapter

    return add


def refuse(forward: str, reason: str) -> None:
    """Blocks whose forward is the function of this path cannot be patched."""
    REFUSALS[forward] = reason


def reads(*methods: str) -> Callable[[Callable[..., Iterable[int]]], Callable[..., Iterable[int]]]:
    """Decorator: given a call of the method of one of these paths, the blocks (from 0) whose output it reads.

    The method must pass every other block's output on to the next block and nowhere else.
    """

    def add(blocks_read: Callable[..., Iterable[int]]) -> Callable[..., Iterable[int]]:
        READERS.update(dict.fromkeys(methods, blocks_read))
        return blocks_read

    return add


def head(decoder: str, name: str) -> None:
    """The decoder whose forward is the function of this path can run on merged tokens.

    Args:
        decoder: takes the tokens first, and minds neither their number nor their order up to the output of
        name: a module in it, which leaves [B, M, ...]: one result a token.
    """
    HEADS[decoder] = name


def path_of(function: Any) -> str:
    """The name that functions are registered under: module and qualified name."""
    return f"{getattr(function, '__module__', None)}.{getattr(function, '__qualname__', None)}"


def adapter_of(block: nn.Module) -> type[Adapter] | None:
    return ADAPTERS.get(path_of(unpatched(type(block)).forward))


def refusal_of(block: nn.Module) -> str | None:
    adapter = adapter_of(block)
    if adapter is not None:
        return adapter.refusal(block)
    return REFUSALS.get(path_of(unpatched(type(block)).forward))


def readers_of(cls: type[nn.Module]) -> dict[str, Callable[..., Iterable[int]]]:
    """By name, the methods of a class that run the blocks and are known to read only some."""
    found = {}
    for path, blocks_read in READERS.items():
        name = path.rpartition(".")[2]
        if path_of(getattr(unpatched(cls), name, None)) == path:
            found[name] = blocks_read
    return found


def head_of(decoder: nn.Module) -> nn.Module | None:
    """The module in a decoder whose output can be unmerged; None if it is not known."""
    name = HEADS.get(path_of(unpatched(type(decoder)).forward))
    return None if name is None else decoder.get_submodule(name)


def unpatched(cls: type[nn.Module]) -> type[nn.Module]:
    """The class that a module had before it was patched."""
    return getattr(cls, "algm_original", cls)


def is_wrapped(module: nn.Module) -> bool:
    """Return whether a forward that was set on the instance hides that of its class.

    transformers sets one around its layers and attention while it collects hidden states and attention maps, and
    afterwards leaves one there that is only the class's own again.
    """
    forward = module.__dict__.get("forward")
    if forward is None:
        return False
    own = getattr(forward, "__self__", None) is module and getattr(forward, "__func__", None) is type(module).forward
    return not own
