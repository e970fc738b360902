"""Hooks that read or change the tokens between blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ..adapters.instance_forward import is_wrapped

# Modules of torch whose hooks leave the tokens alone: one gathers weights, the other notes which module runs.
NOT_OF_TOKENS = ("torch.distributed.fsdp", "torch.distributed._composable.fsdp", "torch.utils.module_tracker")
EVERYWHERE = nn.modules.module  # holds the hooks on every module
HOOKS_EVERYWHERE = [f"_global_{kind}_hooks" for kind in ("forward", "forward_pre", "backward", "backward_pre")]


def reads_and_changes(blocks: Sequence[nn.Module], layer: int) -> tuple[bool, bool]:
    """Return whether hooks read the output of a block (counted from 0), and may have written its input.

    A forward that was set on a block since counts as a hook before and after it.
    """
    for block in blocks[max(layer - 1, 0) : layer + 2]:
        if block._forward_hooks or block._forward_pre_hooks or block._backward_hooks or block._backward_pre_hooks:
            break
        if "forward" in block.__dict__:
            break
    else:
        if not any(map(vars(EVERYWHERE).get, HOOKS_EVERYWHERE)):
            return False, False
    before, block, after = blocks[max(layer - 1, 0) : layer], blocks[layer], blocks[layer + 1 : layer + 2]
    everywhere = of_tokens(EVERYWHERE._global_forward_hooks) or of_tokens(EVERYWHERE._global_forward_pre_hooks)
    read = (
        everywhere
        or of_tokens(block._forward_hooks)
        or block._backward_hooks
        or block._backward_pre_hooks
        or any(of_tokens(other._forward_pre_hooks) or other._backward_hooks for other in after)
        or any(map(is_wrapped, [block, *after]))
        or EVERYWHERE._global_backward_hooks
        or EVERYWHERE._global_backward_pre_hooks
    )
    changed = (
        everywhere
        or of_tokens(block._forward_pre_hooks)
        or any(of_tokens(other._forward_hooks) for other in before)
        or any(map(is_wrapped, [*before, block]))
    )
    return bool(read), bool(changed)


def of_tokens(hooks: Mapping[int, Callable[..., Any]]) -> bool:
    """Return whether there are hooks other than those of torch that leave the tokens alone."""
    return any(not str(getattr(hook, "__module__", "")).startswith(NOT_OF_TOKENS) for hook in hooks.values())
