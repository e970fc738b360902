"""Make up what the forward of a block is told of places, for a proof."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from .attention_parts import HEADS
from .block_arguments import BIASES, POSITIONS, ROTATIONS, known_arguments, required_arguments
from .block_parts import part_of
from .cost import layers_in
from .held_rope import held_rope
from .structure import Call


def arguments_that_run(block: nn.Module, attention: nn.Module, tokens: int, prefix: int) -> Call:
    """Return arguments by name that the forward of a block takes: of each, the first form that it can be given.

    Args:
        block: the proof's own copy.
        attention: of the block.
        tokens, prefix: of the sequence, and of these before the patches.

    Raises:
        Exception: what the forward raises for the first of them, if it takes none.
    """
    names = known_arguments(block)
    others = {name: None for name in required_arguments(block) if name not in names}
    x = torch.zeros(2, tokens, layers_in(block)[0].inputs, device="cpu")
    failure: Exception | None = None
    for values in product(*(forms_of(attention, name, tokens, prefix) for name in names)):
        given = dict(zip(names, values, strict=True)) | others
        try:
            with torch.no_grad():
                block(x, **given)
        except Exception as error:
            failure = failure or error
        else:
            return (), given
    assert failure is not None
    raise failure


def check_runs_on_no_more(block: nn.Module, attention: nn.Module, tokens: int, prefix: int) -> None:
    """Raise ValueError if a block that holds a table of the biases of so many tokens takes more: several windows."""
    for length in (2 * tokens, prefix + 2 * (tokens - prefix)):
        with suppress(Exception):
            arguments_that_run(block, attention, length, prefix)
            break
    else:
        return
    raise ValueError(
        f"its attention holds biases of {tokens} tokens and takes {length}: it runs in windows, which see only a part"
    )


def forms_of(attention: nn.Module, name: str, tokens: int, prefix: int) -> Iterable[Any]:
    """Return what a forward may be given as the argument of this name, most telling first; None: nothing."""
    generator = torch.Generator("cpu").manual_seed(3)
    heads, patches = part_of(attention, HEADS), tokens - prefix
    if name in POSITIONS:
        places = torch.randint(1, 5, (2, tokens, 2), generator=generator, device="cpu")
        places[:, :prefix] = 0
        return [at_one_place(places, 1), None]
    if name in ROTATIONS:
        width = layers_in(attention)[0].inputs // heads
        angles = at_one_place(6 * torch.rand(patches, width, generator=generator, device="cpu"), 0)
        return [(angles.sin(), angles.cos()), torch.cat([angles.sin(), angles.cos()], -1), None]
    if name in BIASES:
        bias = torch.randn(heads, tokens, tokens, generator=generator, device="cpu")
        return [at_one_place(at_one_place(bias, 1), 2), None]
    return [dict(zip("HW", grid_of(patches), strict=True)).get(name, grid_of(patches))]


def grid_of(patches: int) -> tuple[int, int]:
    """Return a grid (H, W) of so many patches."""
    height = next(side for side in range(math.isqrt(patches), 0, -1) if patches % side == 0)
    return height, patches // height


def at_one_place(x: Tensor, dim: int) -> Tensor:
    """Return ``x`` in which the last three along a dimension are equal."""
    length = x.shape[dim]
    return x.index_select(dim, torch.arange(length, device="cpu").clamp(max=length - 3))


def with_small_tables(attention: Any, tokens: int, prefix: int) -> None:
    """Cut what a proof's copy of attention holds of places to so many tokens, the last three at one place."""
    grid = grid_of(tokens - prefix)
    for part in attention.modules():
        index = getattr(part, "relative_position_index", None)
        if isinstance(index, Tensor) and len(index) >= tokens:
            cut = at_one_place(at_one_place(index[:tokens, :tokens], 0), 1)
            part.relative_position_index, part.window_size = cut, grid
    name = held_rope(attention)
    if name is not None:
        rope = attention.get_submodule(name)
        for table, values in list(rope.named_buffers()):
            if values.dim() > 1 and values.shape[-2] >= tokens - prefix:
                setattr(rope, table, at_one_place(values[..., : tokens - prefix, :], values.dim() - 2))
        if hasattr(rope, "patch_resolution"):
            rope.patch_resolution = grid
