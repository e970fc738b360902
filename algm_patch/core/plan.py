"""Plan a merge: from tokens to the groups that they form.

How many merge in a batch: "image": in every image all that reach its threshold; "min": the smallest of these counts,
the most similar of each image; or a number, by similarity alone, whatever the threshold.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, no_grad
from torch.nn.utils.rnn import pad_sequence

from .matching import (
    clap_leaders,
    first_receiver,
    gbm_leaders,
    least_similarity,
    most_similar,
    num_proposals,
    reaching,
    window_similarity,
)
from .packing import Packing
from .rule import PLAIN, Rule
from .thresholds import Share, clap_tau, gbm_tau
from .token_map import TokenMap

Batch = Literal["image", "min"]
HowMany = Batch | int


@dataclass(eq=False)
class Plan:
    """Hold how one merge groups the tokens of a sequence, decided without gradients.

    Attributes:
        step: from the tokens of the sequence to those that are left.
        sizes: [B, L], before the merge; zero past an image's own tokens.
        tau: [B] or [], the threshold; if a number was asked for, [B], the least similarity that merged.
        similarity: that was compared with it: [B, h, w] of the windows, or [B, K] of proposals, minus infinity where
            there is none (past an image's own tokens, or where two are not each other's nearest).
        before: how the images of the sequence are packed.
        picked: [B, M]; the position of the member that stands for each group. None: the members' mean does.
        rule: by which tokens were compared; None: only those of a window were (CLAP).
        width: of the vectors that were compared.
    """

    step: TokenMap
    sizes: Tensor
    tau: Tensor
    similarity: Tensor
    before: Packing | None = None
    picked: Tensor | None = None
    rule: Rule | None = None
    width: int = 0

    @property
    def merges(self) -> bool:
        """True if any token merges. A compiler does not know, and one graph serves both."""
        shape = self.sizes.shape if self.before is None else (1, self.before.total)
        return torch.compiler.is_compiling() or self.step.shape != shape

    def __call__(self, x: Tensor) -> Tensor:
        """Merge tokens [B, L, D], or [1, T, D] if packed; those that are left are packed if they need to be."""
        x = x if self.before is None else self.before.unpack(x)
        if self.picked is None:
            merged = self.step.merge(x, self.sizes)
        else:
            merged = x.gather(1, self.picked[..., None].expand(-1, -1, x.shape[2]))
        return merged if self.step.packing is None else self.step.packing.pack(merged)

    def picking(self, generator: torch.Generator) -> Plan:
        """Return the same groups, each as one of its members, picked at random (supplement, Tab. 4c)."""
        labels = self.step.labels
        # The first member of a group, in a random order of the tokens; padding comes after all of them.
        order = (torch.rand(labels.shape, generator=generator) + (self.sizes == 0).cpu()).argsort(1).to(labels.device)
        shuffled = TokenMap(labels.gather(1, order), self.step.sizes)
        return replace(self, picked=order.gather(1, shuffled.first))


def plan_clap(
    x: Tensor,
    grid: tuple[int, int],
    tau: float | str | Share,
    window: tuple[int, int],
    num_prefix_tokens: int,
    how_many: HowMany = "min",
) -> Plan:
    """Return how CLAP groups tokens [B, P+H*W, D] (paper §3.2)."""
    # Matching is neither differentiated nor rounded to the dtype of autocast.
    with no_grad(), torch.autocast(x.device.type, enabled=False):
        similarity = window_similarity(x[:, num_prefix_tokens:], grid, window)
        windows = similarity.flatten(1)
        fewer, count = window[0] * window[1] - 1, None
        if isinstance(how_many, int):
            merging, count = most_similar(windows, how_many), x.shape[1] - how_many * fewer
            threshold = least_similarity(windows, merging)
        else:
            threshold = clap_tau(windows, tau)
            merging = reaching(windows, threshold, same_number=how_many == "min")
        leaders = clap_leaders(merging.view_as(similarity), grid, window, num_prefix_tokens)
        sizes = torch.ones(x.shape[:2], dtype=similarity.dtype, device=x.device)  # Core ML lacks new_ones
        least = x.shape[1] - similarity.shape[1] * similarity.shape[2] * fewer
        packed = how_many == "image" and x.shape[0] > 1
        return Plan(
            TokenMap.from_leaders(leaders, sizes, count, least=least, packed=packed), sizes, threshold, similarity
        )


def warn_of_nothing(plan: Plan) -> None:
    """Warn if the threshold as published is one that merges nothing (a plan of CLAP)."""
    if not plan.merges and plan.similarity.numel():
        warnings.warn(
            f"tau='paper' merges no windows here: mean + standard deviation is {plan.tau.max():.4f}, "
            f"the most similar window {plan.similarity.max():.4f}. Use tau='auto' or a number",
            stacklevel=2,
        )


def plan_gbm(
    x: Tensor,
    sizes: Tensor,
    tau: float | str | Share | Tensor,
    layer: int,
    num_prefix_tokens: int,
    how_many: HowMany = "min",
    packing: Packing | None = None,
    rule: Rule = PLAIN,
) -> Plan:
    """Return how GBM groups tokens [B, L, D], or [1, T, D] if packed, of these sizes [B, L] (paper §3.2)."""
    packed = how_many == "image" and sizes.shape[0] > 1
    with no_grad(), torch.autocast(x.device.type, enabled=False):
        if packed and is_faster_alone(x):
            images = x.split(1) if packing is None else packing.split(x)
            groups = one_by_one(images, sizes, tau, layer, num_prefix_tokens, rule)
        else:
            counts = None if packing is None else packing.counts
            padded = x if packing is None else packing.unpack(x)
            groups = carried_out(padded, sizes, tau, layer, num_prefix_tokens, how_many, rule, counts)
        similarity, threshold, leaders = groups
        count = sizes.shape[1] - how_many if isinstance(how_many, int) else None
        least = sizes.shape[1] - similarity.shape[1]
        step = TokenMap.from_leaders(leaders, sizes, count, least=least, packed=packed)
        return Plan(step, sizes, threshold, similarity, packing, rule=rule, width=x.shape[2])


def is_faster_alone(x: Tensor) -> bool:
    """Return whether the images of a batch are better matched one by one: on a CPU, where no compiler traces."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def carried_out(
    x: Tensor,
    sizes: Tensor,
    tau: float | str | Share | Tensor,
    layer: int,
    num_prefix_tokens: int,
    how_many: HowMany,
    rule: Rule,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return A's best similarities [B, a], the threshold, and the leaders [B, L] after the proposals that reach it.

    Args:
        x: [B, L, D] tokens.
        sizes: [B, L] of these.
        counts: [B], how many of them are an image's own. None: all.
    """
    if torch.compiler.is_compiling() and not isinstance(how_many, int):
        # It does not know how many A and B tokens there are, and must that neither is a dimension that broadcasts.
        torch._check(num_proposals(x.shape[1], num_prefix_tokens) >= 2)
        torch._check(x.shape[1] - first_receiver(num_prefix_tokens) >= 3)
    similarity, proposer, partner = rule.match(x, num_prefix_tokens, sizes, counts)
    if isinstance(how_many, int):
        merging = most_similar(similarity, how_many)
        threshold = least_similarity(similarity, merging)
    else:
        threshold = gbm_tau(similarity, tau, layer)
        threshold = threshold.mean() if how_many == "min" and isinstance(tau, str) else threshold
        merging = reaching(similarity, threshold, same_number=how_many == "min")
    return similarity, threshold, gbm_leaders(merging, proposer, partner, x.shape[1])


def one_by_one(
    images: Sequence[Tensor],
    sizes: Tensor,
    tau: float | str | Share | Tensor,
    layer: int,
    num_prefix_tokens: int,
    rule: Rule,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `carried_out` of each image [1, m, D] alone: to the last bit the result in a batch of one.

    On a CPU no slower than all at once, padded.
    """
    taus = tau.split(1) if isinstance(tau, Tensor) and tau.dim() else [tau] * len(images)
    each = [
        carried_out(image, own_sizes[:, : image.shape[1]], own, layer, num_prefix_tokens, "image", rule)
        for image, own_sizes, own in zip(images, sizes.split(1), taus, strict=True)
    ]
    similarity = pad_sequence([found[0] for found, *_ in each], batch_first=True, padding_value=-torch.inf)
    threshold = torch.stack([found.reshape(()) for _, found, _ in each])
    leaders = pad_sequence([found[0] for *_, found in each], batch_first=True, padding_value=-1)
    leaders = torch.nn.functional.pad(leaders, (0, sizes.shape[1] - leaders.shape[1]), value=-1)
    return similarity, threshold, torch.where(leaders < 0, torch.arange(sizes.shape[1]), leaders)
