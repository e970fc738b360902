"""Register the methods with which timm's vision transformers run their blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .registry import reads_blocks


def register_trunk(cls: str) -> None:
    """Register a class that runs its ``blocks`` in ``forward_features`` and ``forward_intermediates`` as timm does.

    Args:
        cls: its path, such as ``"timm.models.eva.Eva"``.
    """
    reads_blocks(f"{cls}.forward_features")(last_block)
    reads_blocks(f"{cls}.forward_intermediates")(intermediate_blocks)


def last_block(trunk: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    """Return the last block, the only one that ``forward_features`` reads."""
    return [len(trunk.blocks) - 1]


def intermediate_blocks(
    trunk: Any,
    x: Tensor,
    indices: Any = None,
    return_prefix_tokens: bool = False,
    norm: bool = False,
    stop_early: bool = False,
    output_fmt: str = "NCHW",
    intermediates_only: bool = False,
    *args: Any,
    **kwargs: Any,
) -> Iterable[int]:
    """Return the blocks that a call of ``forward_intermediates`` reads: those asked for, and the last."""
    from timm.models._features import feature_take_indices

    taken, _ = feature_take_indices(len(trunk.blocks), indices)
    return taken if intermediates_only else [*taken, len(trunk.blocks) - 1]
