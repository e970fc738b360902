"""Forwards that were set on a module itself, in front of that of its class."""

from __future__ import annotations

from functools import partial, update_wrapper
from types import MethodType
from typing import Any

from torch import nn

ACCELERATE = "accelerate.hooks"
# What it sets on a module to bring its weights.
BRINGING = {"forward", "_old_forward", "_hf_hook"}


def is_wrapped(module: nn.Module) -> bool:
    """Return whether a forward that was set on the instance hides that of its class.

    transformers sets one around its layers and attention while it collects hidden states and attention maps, and
    afterwards leaves one there that is only the class's own again. accelerate sets one that brings the weights.
    """
    forward = module.__dict__.get("forward")
    if forward is None:
        return False
    if brings_weights(module):
        forward = module.__dict__["_old_forward"]
    own = getattr(forward, "__self__", None) is module and getattr(forward, "__func__", None) is type(module).forward
    return not own


def brings_weights(module: nn.Module) -> bool:
    """Return whether accelerate runs the module's forward between bringing its weights and taking them away."""
    hook, forward = module.__dict__.get("_hf_hook"), module.__dict__.get("forward")
    hooks = [hook, *getattr(hook, "hooks", ())]
    return (
        isinstance(forward, partial)
        and forward.func.__module__ == ACCELERATE
        and "_old_forward" in module.__dict__
        and all(type(each).__module__ == ACCELERATE for each in hooks)  # none of the user's, which may read tokens
    )


def rebind(module: Any) -> None:
    """Let the forward that was set on a module, and does not hide its class's, lead to that of the class it has now."""
    if brings_weights(module):
        module._old_forward = MethodType(type(module).forward, module)
        module.forward = update_wrapper(partial(module.forward.func, module), module._old_forward)
    else:
        module.__dict__.pop("forward", None)
