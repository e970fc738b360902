"""Loops over a model's blocks that do something between them, as people's code does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from algm_patch.patching import bookkeeping, forwards

# What may be done with the output of a block: from the model, the output and what was kept so far, to the next input.
Action = Callable[[Any, Tensor, list[Tensor]], Tensor]


def keep(model: Any, x: Tensor, kept: list[Tensor]) -> Tensor:
    """Keep the output."""
    kept.append(x)
    return x


def keeping(part: Callable[[Any, Tensor], Tensor]) -> Action:
    """Return an action that keeps what a function makes of the output, and hands the output on."""

    def action(model: Any, x: Tensor, kept: list[Tensor]) -> Tensor:
        kept.append(part(model, x))
        return x

    return action


def handing_on(change: Callable[[Tensor], Any]) -> Action:
    """Return an action that hands on what a function makes of the output; the output itself if that is None."""

    def action(model: Any, x: Tensor, kept: list[Tensor]) -> Tensor:
        changed = change(x)
        return x if changed is None else changed

    return action


def write_what_was_kept(model: Any, x: Tensor, kept: list[Tensor]) -> Tensor:
    """Write into an output after the blocks behind it have run."""
    if kept:
        kept[0][:, 2] -= 1
    return x


ACTIONS: dict[str, Action] = {
    "nothing": handing_on(lambda x: None),
    "keep": keep,
    "norm": keeping(lambda model, x: model.norm(x)),
    "grid": keeping(lambda model, x: x[:, 1:].mT.unflatten(2, (6, 5))),
    "copy": keeping(lambda model, x: copy.deepcopy(x)),
    "ask for the form": handing_on(lambda x: x.view(x.shape) if x.dim() != 3 else None),
    "write": handing_on(lambda x: x.mul_(1.5)),
    "write one token": handing_on(lambda x: x[:, 7].add_(1) is None or None),
    "write data": handing_on(lambda x: x.data[:, 3:9].mul_(0.5) is None or None),
    "write with numpy": handing_on(lambda x: x.detach().numpy().__imul__(0.9) is None or None),
    "add": handing_on(lambda x: x + torch.linspace(0, 1, x.shape[1])[:, None]),
    "alias": handing_on(lambda x: x.view_as(x)),
    "detach": handing_on(lambda x: x.detach()),
    "clone": handing_on(lambda x: x.clone()),
    "there and back": handing_on(lambda x: x.double().float()),
    "an older one": lambda model, x, kept: kept[-1] if kept and kept[-1].shape == x.shape else x,
    "write what was kept": write_what_was_kept,
}


def run_loop(model: Any, image: Tensor, actions: Sequence[str], skipped: Sequence[int] = ()) -> list[Tensor]:
    """Run timm's blocks one after the other, with an action behind each. Return what was kept, and the last output."""
    x = model._pos_embed(model.patch_embed(image))
    kept: list[Tensor] = []
    for layer, (block, action) in enumerate(zip(model.blocks, actions, strict=True)):
        if layer not in skipped:
            x = ACTIONS[action](model, block(x), kept)
    return [*kept, x]


@contextmanager
def at_every_block() -> Iterator[None]:
    """Let blocks give back the full grid at once, in the body of a ``with`` statement, as they do with gradients."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forwards, "EAGER", bookkeeping.UNTRACED)
        yield
