"""The state of one forward pass: what each block found, merged and gave back."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ..core.compiling import in_numbers
from ..core.layer_tokens import LayerTokens
from ..core.plan import HowMany, Plan, plan_clap, plan_gbm, warn_of_nothing
from ..core.residual import lost_with
from ..core.thresholds import Share
from ..core.token_map import TokenMap
from ..settings.settings import Settings
from .block_pass import BlockPass, Regroup
from .losses import let_go
from .merges import Merge, merges_of
from .not_the_grid import not_whole, several_grids
from .views import block_of_views, rows_of, views_in
from .weighted_attention import as_mask


class ForwardPass:
    """Hold what happens from the patch projection to the last block.

    Args:
        settings: as they are when the pass begins.
        grid: (H, W) in tokens.
        grids: how many of these the patch projection left.
        num_prefix_tokens: at least so many stand before the patches.
        depth: the number of blocks.
        training: whether the model is.
        in_order: whether the sequence of blocks runs them one after the other, and nothing in between.

    Attributes:
        batch, width, device: of the tokens before anything merged.
        embedded: how many grids the patch projection left, in this call and others that the last block has not seen.
        blocks: the blocks that have run, by number from 0.
        merges: those to carry out, by block from 0.
        taps: blocks (from 0) whose output is read, if the method that runs the blocks is known to read no others;
            None if anything may be read or changed between blocks: then every block gives back the full grid, which in
            inference is made when it is read.
        key: of the patched model, in the memory of tokens; None: this is traced, and tokens have none.
        doubtful: the patch projection left another grid just before, of which no block has run: it is not sure
            whose tokens these are.
        waited: a block has left a full grid that waits to be read.
        restores: what the original tokens lose at merges is kept, and added to every full grid.
        recomputed: a backward pass may run blocks again, which then find what was lost as it was.
        by_halves: a compiler had blocks in halves, and the merges in Python.
        over: all blocks that merge have run, and the method that ran them has returned.
    """

    def __init__(
        self,
        settings: Settings,
        grid: tuple[int, int],
        grids: int,
        num_prefix_tokens: int,
        depth: int,
        training: bool,
        in_order: bool,
    ) -> None:
        self.settings, self.depth, self.in_order = settings, depth, in_order
        self.grids = self.embedded = grids
        self.num_prefix_tokens = num_prefix_tokens
        by_default: Literal["image", "min"] = "min" if training else "image"
        self.batching: Literal["image", "min"] = by_default if settings.batch == "auto" else settings.batch
        # Fixed counts are numbers, also where a compiler or an export would have an image's size a variable.
        self.grid = grid if settings.merge_to is None else in_numbers(grid)
        self.merges = merges_of(settings)
        self.batch, self.width, self.device = 0, 0, torch.device("cpu")
        self.blocks: dict[int, BlockPass] = {}
        self.taps: frozenset[int] | None = None
        self.doubtful = self.waited = self.over = self.recomputed = self.by_halves = False
        self.restores = settings.is_on("restore") and settings.unmerge_at == "before_head" and settings.reduce == "mean"
        self.key: object = None
        self._tokens = LayerTokens(None, None, num_prefix_tokens)
        self._generator: torch.Generator | None = None
        if settings.reduce == "pick":
            if torch.compiler.is_compiling():
                raise ValueError("reduce='pick' draws anew at every forward pass, which no compiled graph does")
            # Of its own: recomputation in the backward pass, which plans nothing, draws dropout's numbers again.
            self._generator = torch.Generator().manual_seed(int(torch.randint(2**62, (), device="cpu")))

    def follow(self, before: ForwardPass) -> None:
        """Note a pass that has not come to its last block: maybe of other images of the same sequences."""
        self.doubtful = not before.blocks and before.grid != self.grid
        if before.grid == self.grid and not before.over and self.depth - 1 not in before.blocks:
            self.embedded += before.embedded

    def again_from(self, layer: int) -> ForwardPass:
        """Return a pass that has gone the same way so far, and takes a block (counted from 0) anew."""
        other = copy.copy(self)
        other.over = False
        other.blocks = {earlier: block for earlier, block in self.blocks.items() if earlier < layer}
        return other

    def begin(self, layer: int, x: Tensor, read: bool, changed: bool) -> BlockPass:
        """Note that a block (counted from 0) is given ``x``, and return what it is to do.

        Args:
            read: something other than the next block reads the output.
            changed: something other than a block may have written the input.
        """
        if x.requires_grad and not torch.compiler.is_compiling():  # graphs recompute by themselves
            self.recomputed = True
        before, full = None, True
        previous = self.blocks.get(layer - 1)
        if self.blocks and (previous is None or previous.views > 1):
            previous, changed = self._block_before(layer), changed or previous is not None
        if previous is not None:
            before, full = previous.after, previous.gives_grid
        merged = None if full else before
        length = self.num_prefix_tokens + self.grid[0] * self.grid[1] if merged is None else merged.shape[1]
        if x.dim() != 3 or x.shape[1] != length:
            newest = self.batch if self.blocks else self.grids
            views = views_in(x, self.grid, length, self.embedded, newest) if merged is None and not self.doubtful else 1
            if views > 1:
                return self._given_views(layer, x, views, before)
            before = self._joined(layer, x, before, length, merged is not None)
        if merged is None:
            self.batch, self.width, self.device = x.shape[0], x.shape[2], x.device
        tokens = self._tokens
        told_of_these = tokens.token_map is before and tokens.num_prefix_tokens == self.num_prefix_tokens
        if not told_of_these or (tokens.key_bias is not None and tokens.key_bias.dtype != x.dtype):
            tokens = self._tokens = self._tokens_of(before, x.dtype)
        regroup: Regroup = "part" if self.restores else "average" if self.taps is None or changed else "take"
        if not full or before is None:
            regroup = "none"
        surely_read, last = self.taps is not None and layer in self.taps, layer + 1 == self.depth
        gives_grid = read or self.taps is None or surely_read
        merges = self.merges.get(layer, []) if self.batch else []  # an empty batch merges nothing
        waits, idle = gives_grid and not surely_read and not last, before is None and not merges
        prefix = self.num_prefix_tokens
        block = BlockPass(before, before, regroup, gives_grid, waits, last, prefix, merges, tokens, idle)
        block.lost = None if previous is None or full else previous.lost
        let_go(self.blocks, self.recomputed)
        return self.blocks.setdefault(layer, block)

    def _block_before(self, layer: int) -> BlockPass | None:
        """Return the last block that has run before this one (counted from 0) on sequences of one grid each."""
        earlier = [index for index, block in self.blocks.items() if index < layer and block.views == 1]
        return self.blocks[max(earlier)] if earlier else None

    def _given_views(self, layer: int, x: Tensor, views: int, before: TokenMap | None) -> BlockPass:
        """Return what a block (counted from 0) is to do with several views in each sequence: attend, and not merge."""
        if layer in self.merges:
            raise several_grids(layer, x, self.num_prefix_tokens, self.grid, self.embedded)
        self.batch, self.width, self.device = self.embedded, x.shape[2], x.device
        lost = self.blocks[max(self.blocks)].lost if self.blocks else None
        rows = rows_of(before, x, lost) if self.settings.merge_to is None else None  # which waits for no device
        let_go(self.blocks, self.recomputed)
        tokens, last = replace(self._tokens_of(rows, x.dtype), num_prefix_tokens=0), layer + 1 == self.depth
        return self.blocks.setdefault(layer, block_of_views(x, self.grid, views, last, tokens, self.restores))

    def _joined(self, layer: int, x: Tensor, before: TokenMap | None, length: int, merged: bool) -> TokenMap | None:
        """Take tokens that joined the prefix before this block (prompts, queries) as its own, in each image.

        Raises:
            ValueError: if the tokens are fewer, or merged, or of a pass that is in doubt.
        """
        joined = x.shape[1] - length if x.dim() == 3 and not merged and not self.doubtful else 0
        if joined <= 0:
            raise not_whole(layer, x, self.num_prefix_tokens, self.grid, length, merged)
        self.num_prefix_tokens += joined
        return None if before is None else before.with_prefix(joined)

    def _tokens_of(self, before: TokenMap | None, dtype: torch.dtype) -> LayerTokens:
        """Return what attention must know of its tokens, which are of this dtype."""
        bias = None
        if before is not None and self.settings.proportional_attention:
            bias = as_mask(before.key_bias, dtype)
        return LayerTokens(before, bias, self.num_prefix_tokens)

    def merge(self, layer: int, x: Tensor, features: Tensor | None) -> Tensor:
        """Carry out the merges of a block (counted from 0), planned when its tokens first come by.

        Args:
            x: [B, L, D] tokens.
            features: [B, L, D'] of these tokens, whose cosine decides; None: the tokens themselves.
        """
        block = self.blocks[layer]
        for merge in block.merges:
            planned = block.plans.get(merge.stage)
            plan = planned or self._plan(merge, layer, x if features is None else features)
            block.plans[merge.stage] = plan
            if not plan.merges:
                continue
            merged = plan(x)
            if planned is None:
                if self.restores:
                    block.lost = lost_with(plan, block.after, x, merged, block.lost)
                block.after = plan.step if block.after is None else block.after.then(plan.step)
            x, features = merged, None if features is None else plan(features)
        return x

    def _plan(self, merge: Merge, layer: int, x: Tensor) -> Plan:
        """Return what a merge does to the tokens of a block (counted from 0)."""
        block, settings = self.blocks[layer], self.settings
        prefix = block.num_prefix_tokens
        how_many: HowMany = self.batching
        if merge.patches_left is not None:
            how_many = merge.how_many(x.shape[1] - prefix, prefix, self.grid)
        if merge.stage == "CLAP":
            plan = plan_clap(x, self.grid, merge.tau, merge.window, prefix, how_many)  # type: ignore[arg-type]
            if settings.tau == "paper":
                warn_of_nothing(plan)
        else:
            before = block.after
            sizes = torch.ones(x.shape[:2], device=x.device) if before is None else before.sizes
            packing = None if before is None else before.packing
            tau = self._tau_of_clap() if merge.tau == "tau" else merge.tau
            rule = merge.rule if before is not None else merge.rule._replace(size_aware=False)  # all hold one
            plan = plan_gbm(x, sizes, tau, layer + 1, prefix, how_many, packing, rule)
        return plan if self._generator is None else plan.picking(self._generator)

    def _tau_of_clap(self) -> float | str | Share | Tensor:
        """Return the threshold that CLAP computed in this pass."""
        clap_layer = self.settings.clap_layer
        block = None if clap_layer is None else self.blocks.get(clap_layer - 1)
        if block is None:
            raise RuntimeError(
                f"gbm_tau='tau' takes CLAP's threshold, but block {clap_layer}, where CLAP computes it, "
                "did not run in this forward pass. Set model.algm.gbm_tau to 'adaptive' or a number"
            )
        return block.plans["CLAP"].tau

    def unmerge(self, x: Tensor, image: int | None = None) -> Tensor:
        """Copy results of merged tokens back to the full grid; of one image of the batch alone, without padding.

        See `algm_patch.Algm.unmerge`.
        """
        token_map, prefix = self.token_map if image is None else self.token_map.of_image(image), self.num_prefix_tokens
        if x.shape[1] == token_map.sizes.shape[1] - prefix:
            token_map = token_map.without_prefix(prefix)
        return token_map.unmerge(x)

    @property
    def token_map(self) -> TokenMap:
        """From the original tokens to those of the last block so far."""
        last = self._block_before(self.depth)
        if last is not None and last.after is not None:
            return last.after
        return TokenMap.identity(self.batch, self.num_prefix_tokens + self.grid[0] * self.grid[1], self.device)
