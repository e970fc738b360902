"""Hold what the original tokens of a forward pass have lost no longer than something asks for it."""

from __future__ import annotations

from collections.abc import Mapping

from .block_pass import BlockPass


def let_go(blocks: Mapping[int, BlockPass], recomputed: bool) -> None:
    """Forget what was lost up to the last block that has run.

    Whoever keeps tokens keeps their forward pass, which would keep as much again for every merge. The next block has
    its own sum by then, and so has a full grid that waits to be read.

    Args:
        blocks: those that have run, by number.
        recomputed: a backward pass may run them again. Then nothing is forgotten.
    """
    if blocks and not recomputed:
        blocks[max(blocks)].lost = None
