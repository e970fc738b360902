"""One block of one forward pass: which tokens it is given, merges and gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import ref as weakref

from torch import Tensor

from ..core.layer_tokens import LayerTokens
from ..core.plan import Plan
from ..core.residual import parted, restored
from ..core.token_map import TokenMap
from .merges import Merge

# Ways to get one token per group from the tokens that a block is given.
Regroup = Literal["none", "take", "average", "part"]


@dataclass(eq=False)
class BlockPass:
    """Hold one block of one forward pass. Gradient checkpointing runs it again and finds its plans made.

    Attributes:
        before: from the original tokens to those that the block's attention sees; None while nothing is merged.
        after: likewise, to those that the block leaves.
        regroup: how the block's input becomes one token per group; "none": it is that, or nothing is merged; "part": by
            averages, and what the full grid has beside them is kept in ``lost``.
        gives_grid: whether the block gives back the full grid.
        waits: whether it may wait with that until something reads the grid; after it has run: whether it did.
        last: whether it is the last block, whose tokens leave as a batch [B, M, D].
        num_prefix_tokens: those that stand before the patches here. They may become more from block to block.
        merges: those to carry out here.
        tokens: what the block's attention must know of its tokens.
        idle: whether nothing was merged before, and nothing merges here.
        views: how many views, frames or crops each sequence holds that the block is given. Of several it is given the
            full grids, and leaves them; maps and tokens are of whole sequences.
        plans: of the merges, made when the tokens first come by.
        lost: [B, P+N, D]; what each original token has lost at the merges so far; None: nothing that is restored.
        unread: the full grid, while nothing has read it.
        handed: whether the block before handed its merged tokens on.
    """

    before: TokenMap | None
    after: TokenMap | None
    regroup: Regroup
    gives_grid: bool
    waits: bool
    last: bool
    num_prefix_tokens: int
    merges: list[Merge]
    tokens: LayerTokens
    idle: bool
    views: int = 1
    plans: dict[str, Plan] = field(default_factory=dict)
    lost: Tensor | None = None
    unread: weakref[Any] | None = None
    handed: bool = False

    def enter(self, x: Tensor) -> Tensor:
        """Return one token per group, packed if images have different numbers of them.

        The copies that a block made when it gave back the grid are equal unless something changed them since; then
        they are averaged, in the form that returns equal copies bit for bit. To copies with what their tokens had lost
        the average gives back the merged token.
        """
        assert self.before is not None
        if self.regroup == "part":
            means, lost = parted(self.before, x)
            if self.lost is None:  # recomputation finds what the merges here have added
                self.lost = lost
            return self.before.pack(means)
        first = self.before.take(x)
        if self.regroup == "average":
            first = first + self.before.merge(x - self.before.unmerge(first))
        return self.before.pack(first)

    def leave(self, x: Tensor, lost: Tensor | None) -> Tensor:
        """Return the full grid if the block gives it back; else merged tokens [B, M, D], padded.

        Args:
            lost: by the original tokens, up to the end of this block.
        """
        assert self.after is not None
        x = x if self.after.packing is None else self.after.packing.unpack(x)
        if not self.gives_grid:
            return x
        full = self.after.unmerge(x)
        return full if lost is None else restored(full, lost)
