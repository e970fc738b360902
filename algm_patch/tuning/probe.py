"""Similarities that merging compares, read from a forward pass that ends when they are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.eval_mode import eval_mode
from ..trunks import handle_of


class StopForward(Exception):  # noqa: N818, not an error
    """End a forward pass whose similarities are known."""


def similarities(model: nn.Module, stage: str, layers: Sequence[int], forward: Callable[[], object]) -> list[Tensor]:
    """Return, for each of some layers, the similarities [K] that a stage compared, over the whole batch.

    The model forgets the forward pass afterwards.

    Args:
        model: patched; its settings say where the stage merges.
        stage: "CLAP" for the similarities of windows, "GBM" for those of proposals.
        layers: counted from 1, in rising order; the stage merges in each of them.
        forward: runs the model. It is stopped after the last of the layers.

    Raises:
        ValueError: if ``forward`` did not run one of the blocks.
    """

    def stop(*_: Any) -> None:
        raise StopForward

    handle = handle_of(model)
    blocks = handle.runtime.vit.blocks
    hook = blocks[layers[-1] - 1].register_forward_hook(stop)
    try:
        with torch.no_grad(), eval_mode(model):
            forward()
    except StopForward:
        pass
    finally:
        hook.remove()
    passed = handle.last_pass.blocks
    if missing := [layer for layer in layers if layer - 1 not in passed]:
        raise ValueError(
            f"{stage} cannot be measured in block {missing[0]}, which did not run: {len(passed)} of "
            f"{len(blocks)} blocks did. Run the whole ViT"
        )
    found = [passed[layer - 1].plans[stage].similarity.flatten().cpu() for layer in layers]
    handle.runtime.forget()
    return [similarity[similarity != -torch.inf] for similarity in found]  # -inf fills up the images of a packed batch
