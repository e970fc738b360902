"""Register and find blocks, methods and decoders by the path of the function that is known.

A subclass with a method of its own is another function, and is not mistaken for its parent.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from .base import Adapter
from .instance_forward import is_wrapped
from .proof import prove
from .proof_key import proof_key
from .refused import REASONS, SCRIPTED
from .refused_parts import why_by_parts
from .structure import Structure
from .unpatched import unpatched


class Proof(NamedTuple):
    """Hold the structure that a block is proved to have, or why it has none.

    Attributes:
        adapter: None: no structure.
        reason: why it cannot be patched; None if it can, or seems to have no structure.
    """

    adapter: type[Adapter] | None
    reason: str | None


Reader = Callable[..., Iterable[int] | None]
R = TypeVar("R", bound=Reader)

# All by the path of a function: see `path_of`.
ADAPTERS: dict[str, type[Adapter]] = {}
READERS: dict[str, Reader] = {}
HEADS: dict[str, str] = {}
# Tried in this order on blocks that no adapter is registered for.
STRUCTURES: list[type[Structure]] = []
# By class and configuration of a block: what was proved, or what differed.
PROOFS: dict[Hashable, Proof] = {}


def register(forward: str) -> Callable[[type[Adapter]], type[Adapter]]:
    """Register the decorated `Adapter` for the blocks whose forward is the function of this path.

    Args:
        forward: module and qualified name of the forward that the adapter's halves stand for, such as
            ``"mypackage.models.Block.forward"``. A subclass with a forward of its own is another function and needs an
            adapter of its own. The last registration holds.

    Raises:
        TypeError: if the adapter lacks a half.
    """

    def add(adapter: type[Adapter]) -> type[Adapter]:
        check_complete(adapter)
        ADAPTERS[forward] = adapter
        return adapter

    return add


def structure(adapter: type[Structure]) -> type[Structure]:
    """Add the decorated `Structure` to those that are tried on blocks that no adapter is registered for."""
    STRUCTURES.append(adapter)
    return adapter


def check_complete(adapter: type[Adapter]) -> None:
    """Raise TypeError if an adapter lacks what has no default."""
    name = f"{adapter.__module__}.{adapter.__qualname__}"
    for half in ("attention_half", "mlp_half"):
        if getattr(adapter, half) is getattr(Adapter, half):
            raise TypeError(f"{name} has no {half}: write that part of the block's forward as a static method")


def reads_blocks(*methods: str) -> Callable[[R], R]:
    """Register the decorated function as the one that knows which blocks' outputs these methods read.

    The function takes the arguments of a call of the method, and returns the blocks (from 0) whose output that call
    reads; None if the method is another one of the same path, in a fork of the library. The method must pass every
    other block's output on to the next block and nowhere else.

    Args:
        methods: paths of methods that run the blocks.
    """

    def add(blocks_read: R) -> R:
        READERS.update(dict.fromkeys(methods, blocks_read))
        return blocks_read

    return add


def register_head(decoder: str, head: str) -> None:
    """Register a decoder that can run on merged tokens.

    Args:
        decoder: path of its forward. It takes the tokens as its first argument, and depends neither on their number
            nor on their order up to the output of the head.
        head: path, from the decoder, of a module that leaves [B, M, ...]: one result for each token.
    """
    HEADS[decoder] = head


def _path_of(function: Any) -> str:
    """Return the name that a function is registered under: its module and qualified name."""
    return f"{getattr(function, '__module__', None)}.{getattr(function, '__qualname__', None)}"


# A compiler that looks into it reads another qualified name. By another name than the function's own, which compilers
# of older torch make the result's.
path_of: Callable[[Any], str] = torch.compiler.assume_constant_result(_path_of)


def forward_path(module: nn.Module) -> str:
    """Return the path of the forward of a module's own class; one that TorchScript compiled has none."""
    return path_of(None if is_scripted(module) else unpatched(type(module)).forward)


def is_scripted(module: nn.Module) -> bool:
    """Return whether TorchScript compiled a module."""
    return isinstance(module, torch.jit.ScriptModule)


def adapter_of(block: nn.Module) -> type[Adapter] | None:
    """Return the adapter of a block, registered or proved; None if there is none."""
    registered = registered_adapter(block)
    if registered is not None or refusal_of(block) is not None:
        return registered
    return proof_of(block).adapter


def registered_adapter(block: nn.Module) -> type[Adapter] | None:
    """Return the adapter that is registered for the forward of a block; None if there is none."""
    return ADAPTERS.get(forward_path(block))


def likely_adapter(block: nn.Module) -> type[Adapter] | None:
    """Return the adapter that is registered for a block, or the first structure that it may have; prove nothing."""
    registered = registered_adapter(block)
    if registered is not None or refusal_of(block) is not None:
        return registered
    return next((each for each in STRUCTURES if each.fits(block)), None)


def refusal_of(block: nn.Module) -> str | None:
    """Return why a block whose forward is known cannot be patched; None if it can, or is not known."""
    adapter = registered_adapter(block)
    if adapter is not None:
        return adapter.refusal(block)
    if is_scripted(block):
        return SCRIPTED
    return REASONS.get(forward_path(block)) or why_by_parts(block)


def proof_of(block: nn.Module) -> Proof:
    """Return the first structure that a block is proved to have, or what differs from the first that it seems to have.

    Nothing is proved twice of blocks of one class and configuration.
    """
    key = proof_key(block)
    if key not in PROOFS:
        PROOFS[key] = try_structures(block)
    return PROOFS[key]


def try_structures(block: nn.Module) -> Proof:
    """Try to prove each structure that a block seems to have."""
    reasons = []
    for each in STRUCTURES:
        if each.fits(block):
            reason = why_hidden(block) or prove(each, block)
            if reason is None:
                return Proof(each, None)
            reasons.append(reason)
    return Proof(None, reasons[0] if reasons else None)


def why_hidden(block: nn.Module) -> str | None:
    """Return why it cannot be known what a part of a block computes, or whose it is; None if it can."""
    if unpatched(type(block)).__getattr__ is not nn.Module.__getattr__:
        return "it hands on the parts of another module, which it may wrap. Call apply_algm before blocks are wrapped"
    hidden = next((name for name, part in block.named_modules() if name and is_wrapped(part)), None)
    return None if hidden is None else f"its {hidden} has a forward set on the instance. Undo what set it first"


def readers_of(cls: type[nn.Module]) -> dict[str, Reader]:
    """Return the methods of a class that run the blocks, by name, each with the function that knows what it reads."""
    found = {}
    for path, blocks_read in READERS.items():
        name = path.rpartition(".")[2]
        if path_of(getattr(unpatched(cls), name, None)) == path:
            found[name] = blocks_read
    return found


def head_of(decoder: nn.Module) -> nn.Module | None:
    """Return the module in a decoder whose output can be unmerged; None if the decoder is not known."""
    head = HEADS.get(forward_path(decoder))
    return None if head is None else decoder.get_submodule(head)
