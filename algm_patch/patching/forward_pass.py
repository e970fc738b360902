"""The state of one forward pass: what each block found, merged and gave back."""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..core.layer_tokens import LayerTokens
from ..core.matching import num_proposals
from ..core.plan import HowMany, Plan, plan_clap, plan_gbm, proposals_to_carry_out, warn_of_nothing, windows_to_merge
from ..core.thresholds import Share
from ..core.token_map import TokenMap
from ..settings.checks import above_all
from ..settings.settings import Settings

# How a block's input becomes one token per group.
Entry = Literal["as it is", "take", "average"]


@dataclass(eq=False)
class Step:
    """One block of one forward pass. Gradient checkpointing runs it again and finds its plans made.

    Attributes:
        before: from the original tokens to those that the block's attention sees; None while nothing is merged.
        after: likewise, to those that the block leaves.
        entry: how the block's input becomes one token per group.
        tap: whether the block gives back the full grid.
        num_prefix_tokens: those that stand before the patches here. They may become more from block to block.
        plans: by stage, made when the tokens first come by.
    """

    before: TokenMap | None
    after: TokenMap | None
    entry: Entry
    tap: bool
    num_prefix_tokens: int
    plans: dict[str, Plan] = field(default_factory=dict)

    def enter(self, x: Tensor) -> Tensor:
        """One token per group, packed if images have different numbers of them.

        The copies that a tap made are equal unless something changed them since; then they are averaged, in the
        form that returns equal copies bit for bit.
        """
        if self.before is None or self.entry == "as it is":
            return x
        first = self.before.take(x)
        if self.entry == "average":
            first = first + self.before.merge(x - self.before.unmerge(first))
        return self.before.pack(first)

    def leave(self, x: Tensor, last: bool) -> Tensor:
        """The full grid at a tap; merged tokens that leave the last block, [B, M, D], padded."""
        if self.after is None or not (self.tap or last):
            return x
        x = self.after.unpack(x)
        return self.after.unmerge(x) if self.tap else x


class ForwardPass:
    """From the patch projection to the last block.

    Args:
        settings: as they are when the pass begins.
        tau: CLAP's threshold or the rule for it.
        grid: (H, W) in tokens.
        num_prefix_tokens: at least so many stand before the patches.
        training: whether the model is.

    Attributes:
        taps: blocks (from 0) whose output is read, if the method that runs the blocks is known to read no others;
            None if anything may be read or changed between blocks: then every block gives back the full grid.
        doubtful: the patch projection left another grid just before, of which no block has run: it is not sure
            whose tokens these are.
    """

    def __init__(
        self,
        settings: Settings,
        tau: float | str,
        grid: tuple[int, int],
        num_prefix_tokens: int,
        training: bool,
    ) -> None:
        self.settings = settings
        self.batching: Literal["image", "min"] = (
            settings.batch if settings.batch != "auto" else "min" if training else "image"
        )
        self.tau = tau
        # Fixed counts are numbers, also where a compiler or an export would have an image's size a variable.
        self.grid = grid if settings.merge_to is None else (operator.index(grid[0]), operator.index(grid[1]))
        self.taps: frozenset[int] | None = None
        self.num_prefix_tokens = num_prefix_tokens
        self.doubtful = False
        self._tokens: tuple[object, LayerTokens] | None = None
        self.batch, self.width, self.device = 0, 0, torch.device("cpu")
        self.steps: dict[int, Step] = {}
        self._generator: torch.Generator | None = None
        if settings.reduce == "pick":
            if torch.compiler.is_compiling():
                raise ValueError("reduce='pick' draws anew at every forward pass, which no compiled graph does")
            # Of its own: recomputation in the backward pass, which plans nothing, draws dropout's numbers again.
            self._generator = torch.Generator().manual_seed(int(torch.randint(2**62, (), device="cpu")))

    def again_from(self, layer: int) -> ForwardPass:
        """A pass that has gone the same way so far, and takes a block (counted from 0) anew."""
        other = copy.copy(self)
        other.steps = {earlier: step for earlier, step in self.steps.items() if earlier < layer}
        return other

    def begin(self, layer: int, x: Tensor, read: bool, changed: bool) -> Step:
        """Open the step of a block (counted from 0) on its input.

        Args:
            read: something other than the next block reads the output.
            changed: something other than a block may have written the input.
        """
        before, full = None, True
        earlier = [index for index in self.steps if index < layer]
        if earlier:
            previous = self.steps[max(earlier)]
            before, full = previous.after, previous.tap
        joined = self._check_tokens(layer, x, before, full)
        before = before.with_prefix(joined) if before is not None and joined else before
        entry: Entry = "as it is" if not full else "average" if self.taps is None or changed else "take"
        tap = read or self.taps is None or layer in self.taps
        self.steps[layer] = step = Step(before, before, entry, tap, self.num_prefix_tokens)
        return step

    def _check_tokens(self, layer: int, x: Tensor, before: TokenMap | None, full: bool) -> int:
        """How many tokens (prompts, queries) joined the prefix before this block."""
        patches = self.grid[0] * self.grid[1]
        length = self.num_prefix_tokens + patches
        merged = None if full else before
        expected = length if merged is None else merged.shape[1]
        joined = x.shape[1] - expected if x.dim() == 3 and merged is None and not self.doubtful else 0
        if x.dim() != 3 or x.shape[1] != expected + max(joined, 0):
            raise ValueError(
                f"block {layer + 1} was given {list(x.shape)} where ALGM expected [B, {expected}, D]: "
                f"{self.num_prefix_tokens} prefix tokens, then {self.grid[0]}x{self.grid[1]} patches"
                f"{'' if expected == length else ', merged'}. "
                "It needs the whole grid in every block, with nothing left out on the way (patch dropout, masking)"
            )
        self.num_prefix_tokens += joined
        if merged is None:
            self.batch, self.width, self.device = x.shape[0], x.shape[2], x.device
        return joined

    def stages(self, layer: int) -> list[str]:
        """Return the merges to plan in a block (counted from 0): those asked for, unless the batch is empty."""
        return self._asked(layer) if self.batch else []

    def _asked(self, layer: int) -> list[str]:
        """Return the merges that the settings ask for in a block (counted from 0)."""
        settings, stages = self.settings, []
        fixed = settings.merge_to is not None
        if layer + 1 == settings.clap_layer and (fixed or not above_all(settings.tau)):
            stages.append("CLAP")
        if layer + 1 in settings.gbm_layers and (fixed or not above_all(self._gbm_setting(layer))):
            stages.append("GBM")
        return stages

    def passed_by(self) -> list[int]:
        """Return the blocks (from 0) that were to merge and did not run, of a pass that is over.

        Empty if a method that is known ended the pass early, after some of them.
        """
        named = {*self.settings.gbm_layers, self.settings.clap_layer or 0}
        asked = [layer - 1 for layer in sorted(named) if self._asked(layer - 1)]
        missing = [layer for layer in asked if layer not in self.steps]
        ended_early = self.taps is not None and len(missing) < len(asked) and max(self.steps) < min(missing, default=0)
        return [] if ended_early else missing

    def _how_many(self, stage: str, layer: int, length: int) -> HowMany:
        """Merges of a stage in a block (counted from 0), of a sequence of this length."""
        settings = self.settings
        if settings.merge_to is None:
            return self.batching
        if stage == "CLAP":
            return windows_to_merge(settings.patches_left(0), self.grid, settings.window)
        merge = settings.gbm_layers.index(layer + 1) + (settings.clap_layer is not None)
        prefix = self.steps[layer].num_prefix_tokens
        return proposals_to_carry_out(settings.patches_left(merge), length - prefix, num_proposals(length, prefix))

    def _gbm_setting(self, layer: int) -> float | str | Share:
        """Return GBM's threshold in a block (counted from 0) or the rule for it, as far as the settings tell it.

        "tau" stands for a threshold that CLAP computes during the pass.
        """
        tau = self.settings.gbm_tau
        if isinstance(tau, tuple):
            return tau[self.settings.gbm_layers.index(layer + 1)]
        return self.tau if tau == "tau" and not isinstance(self.tau, str) else tau

    def _gbm_tau(self, layer: int) -> float | str | Share | Tensor:
        """Return GBM's threshold in a block (counted from 0), or the rule for it, when CLAP has run."""
        tau, clap_layer = self._gbm_setting(layer), self.settings.clap_layer
        if tau != "tau":
            return tau
        step = None if clap_layer is None else self.steps.get(clap_layer - 1)
        if step is None:
            raise RuntimeError(
                f"gbm_tau='tau' takes CLAP's threshold, but block {clap_layer}, where CLAP computes it, "
                "did not run in this forward pass. Set model.algm.gbm_tau to 'adaptive' or a number"
            )
        return step.plans["CLAP"].tau

    def enter(self, step: Step, x: Tensor) -> tuple[Tensor, LayerTokens]:
        """One token per group, and what the attention of the block must know of them."""
        x = step.enter(x)
        return x, self.tokens(step, x)

    def leave(self, step: Step, x: Tensor, last: bool) -> Tensor:
        return step.leave(x, last)

    def tokens(self, step: Step, x: Tensor) -> LayerTokens:
        """What the attention of a block must know of its tokens ``x``; the same object while they stay the same."""
        key = (step.before, step.num_prefix_tokens, x.dtype)
        if self._tokens is None or self._tokens[0] != key:
            bias = None
            if step.before is not None and self.settings.proportional_attention:
                bias = step.before.key_bias.to(x.dtype)
            self._tokens = key, LayerTokens(step.before, bias, step.num_prefix_tokens)
        return self._tokens[1]

    def merge(self, layer: int, x: Tensor, features: Tensor | None = None) -> Tensor:
        """Carry out the stages of a block (counted from 0), planned when its tokens first come by.

        Args:
            x: [B, L, D] tokens.
            features: [B, L, D'] of these tokens, whose cosine decides. Default: the tokens themselves.
        """
        step = self.steps[layer]
        for stage in self.stages(layer):
            if stage not in step.plans:
                step.plans[stage] = plan = self._plan(stage, layer, x if features is None else features)
                if plan.merges:
                    step.after = plan.step if step.after is None else step.after.then(plan.step)
            plan = step.plans[stage]
            if plan.merges:
                x, features = plan(x), None if features is None else plan(features)
        return x

    def _plan(self, stage: str, layer: int, x: Tensor) -> Plan:
        plan = self._groups(stage, layer, x)
        return plan if self._generator is None else plan.picking(self._generator)

    def _groups(self, stage: str, layer: int, x: Tensor) -> Plan:
        step = self.steps[layer]
        how_many = self._how_many(stage, layer, x.shape[1])
        if stage == "GBM":
            before = step.after
            sizes = x.new_ones(x.shape[:2], dtype=torch.float32) if before is None else before.sizes
            packing = None if before is None else before.packing
            return plan_gbm(x, sizes, self._gbm_tau(layer), layer + 1, step.num_prefix_tokens, how_many, packing)
        plan = plan_clap(x, self.grid, self.tau, self.settings.window, step.num_prefix_tokens, how_many)
        if self.settings.tau == "paper":
            warn_of_nothing(plan)
        return plan

    def unmerge(self, x: Tensor, image: int | None = None) -> Tensor:
        """See :meth:`algm_patch.handle.Algm.unmerge`; of one image of the batch alone, without padding."""
        token_map, prefix = self.token_map if image is None else self.token_map.of_image(image), self.num_prefix_tokens
        if x.shape[1] == token_map.sizes.shape[1] - prefix:
            token_map = token_map.without_prefix(prefix)
        return token_map.unmerge(x)

    def images(self, x: Tensor) -> list[Tensor] | None:
        """Merged tokens [B, P+M, D] or [B, M, D] as [1, m, D] of each image; None if all have the same number."""
        packing = self.token_map.packing
        if packing is None:
            return None
        left_out = packing.longest - x.shape[1]
        return [x[i : i + 1, : length - left_out] for i, length in enumerate(packing.lengths)]

    @property
    def token_map(self) -> TokenMap:
        """From the original tokens to those of the last block so far."""
        after = self.steps[max(self.steps)].after if self.steps else None
        if after is not None:
            return after
        height, width = self.grid
        return TokenMap.identity(self.batch, self.num_prefix_tokens + height * width, self.device)
