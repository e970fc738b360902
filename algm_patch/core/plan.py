"""The two merges of ALGM as functions on tokens: matching, choice, merge.

How many merge in a batch: "image": in every image what passes its threshold; "min": the smallest of these counts,
the most similar of each image; or a number, by similarity alone, whatever the threshold.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .matching import (
    best_matches,
    clap_leaders,
    first_receiver,
    gbm_leaders,
    most_similar,
    num_proposals,
    same_number,
    window_similarity,
)
from .packing import Packing
from .thresholds import Share, adaptive_tau, auto_tau, paper_tau
from .token_map import TokenMap

Batch = Literal["image", "min"]
HowMany = Batch | int


@dataclass(eq=False)
class Plan:
    """What one merge does to a sequence, decided without gradients.

    Attributes:
        step: from the tokens of the sequence to those that are left.
        sizes: [B, L], before the merge; zero past an image's own tokens.
        tau: [B] or [], the threshold; if a number was asked for, [B], the least similarity that merged.
        similarity: what it was compared with: [B, h, w] of the windows, or [B, a] of A's best matches, minus
            infinity past an image's own.
        before: how the images of the sequence are packed.
        picked: [B, M]; the position of the member that stands for each group. None: the members' mean does.
        width: of the vectors that were compared with each other, all A with all B tokens; 0: none were (CLAP).
    """

    step: TokenMap
    sizes: Tensor
    tau: Tensor
    similarity: Tensor
    before: Packing | None = None
    picked: Tensor | None = None
    width: int = 0

    @property
    def merges(self) -> bool:
        # A compiler does not know, and one graph serves both.
        return torch.compiler.is_compiling() or self.step.shape != self.shape

    @property
    def shape(self) -> tuple[int, int]:
        """Of the sequence before the merge, as the blocks take it."""
        return (self.sizes.shape[0], self.sizes.shape[1]) if self.before is None else (1, self.before.total)

    def __call__(self, x: Tensor) -> Tensor:
        """[B, L, D], or [1, T, D] if packed, to the tokens that are left, packed if they need to be."""
        x = x if self.before is None else self.before.unpack(x)
        if self.picked is None:
            return self.step.pack(self.step.merge(x, self.sizes))
        return self.step.pack(x.gather(1, self.picked[..., None].expand(-1, -1, x.shape[2])))

    def picking(self, generator: torch.Generator) -> Plan:
        """The same groups, each as one of its members, picked at random (supplement, Tab. 4c)."""
        labels = self.step.labels
        # The first member of a group, in a random order of the tokens; padding comes after all of them.
        order = (torch.rand(labels.shape, generator=generator) + (self.sizes == 0).cpu()).argsort(1).to(labels.device)
        shuffled = TokenMap(labels.gather(1, order), self.step.sizes)
        return replace(self, picked=order.gather(1, shuffled.first))


def windows_to_merge(kept: float | int, grid: tuple[int, int], window: tuple[int, int]) -> int:
    """How many windows of a grid leave nearest to ``kept`` of its patches: a share, or a number.

    Raises:
        ValueError: if that number is beyond what merging all windows, or none, leaves.
    """
    patches, windows = grid[0] * grid[1], (grid[0] // window[0]) * (grid[1] // window[1])
    fewer = window[0] * window[1] - 1
    least = patches - windows * fewer
    if isinstance(kept, int):
        check_number("CLAP", kept, least, patches)
    return min(round((patches - number(kept, patches)) / fewer), windows)


def proposals_to_carry_out(kept: float | int, patches: int, candidates: int) -> int:
    """How many of GBM's proposals leave ``kept`` of so many patches: a share, or a number.

    Raises:
        ValueError: if there are not so many proposals.
    """
    if isinstance(kept, int):
        check_number("GBM", kept, patches - candidates, patches)
    return min(patches - number(kept, patches), candidates)


def number(kept: float | int, patches: int) -> int:
    return kept if isinstance(kept, int) else round(kept * patches)


def check_number(stage: str, kept: int, least: int, most: int) -> None:
    if not least <= kept <= most:
        raise ValueError(f"merge_to asks {stage} to leave {kept} of {most} patches: it can leave {least} to {most}")


def plan_clap(
    x: Tensor,
    grid: tuple[int, int],
    tau: float | str,
    window: tuple[int, int],
    num_prefix_tokens: int,
    how_many: HowMany = "min",
) -> Plan:
    """A plan for tokens [B, P+H*W, D]."""
    with planning(x):
        similarity = window_similarity(x[:, num_prefix_tokens:], grid, window)
        threshold, merges = choose(similarity.flatten(1), lambda windows: clap_tau(windows, tau), how_many)
        leaders = clap_leaders(merges.view_as(similarity), grid, window, num_prefix_tokens)
        sizes = similarity.new_ones(x.shape[:2])
        fewer = window[0] * window[1] - 1
        count = x.shape[1] - how_many * fewer if isinstance(how_many, int) else None
        least = x.shape[1] - similarity.shape[1] * similarity.shape[2] * fewer
        step = TokenMap.from_leaders(leaders, sizes, count, least=least, packed=ragged(how_many, x.shape[0]))
        return Plan(step, sizes, threshold, similarity)


def choose(similarity: Tensor, rule: Callable[[Tensor], Tensor], how_many: HowMany) -> tuple[Tensor, Tensor]:
    """The threshold, and which candidates [B, K] of these similarities [B, K] merge."""
    if isinstance(how_many, int):
        merges = most_similar(similarity, how_many)
        merged = torch.where(merges, similarity, torch.inf)
        return merged.amin(1) if merged.shape[1] else merged.sum(1) + torch.inf, merges
    tau = rule(similarity)
    passes = similarity >= tau.reshape(-1, 1)  # NaN never does
    return tau, passes if how_many == "image" else same_number(similarity, passes)


def ragged(how_many: HowMany, batch: int) -> bool:
    """Whether the images of a batch may be left with different numbers of tokens."""
    return how_many == "image" and batch > 1


def warn_of_nothing(plan: Plan) -> None:
    """Say so if the threshold as published is one that merges nothing (a plan of CLAP)."""
    if not plan.merges and plan.similarity.numel():
        warnings.warn(
            f"tau='paper' merges nothing here: mean + standard deviation is {plan.tau.max():.4f}, "
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
) -> Plan:
    """A plan for tokens [B, L, D], or [1, T, D] if packed, of these sizes [B, L]."""
    with planning(x):
        if ragged(how_many, sizes.shape[0]) and is_faster_alone(x):
            images = x.split(1) if packing is None else packing.split(x)
            groups = one_by_one(images, tau, layer, num_prefix_tokens, sizes.shape[1])
        else:
            counts = None if packing is None else packing.counts
            padded = x if packing is None else packing.unpack(x)
            groups = proposals(padded, tau, layer, num_prefix_tokens, how_many, counts)
        similarity, threshold, leaders = groups
        count = sizes.shape[1] - how_many if isinstance(how_many, int) else None
        least = sizes.shape[1] - similarity.shape[1]
        step = TokenMap.from_leaders(leaders, sizes, count, least=least, packed=ragged(how_many, sizes.shape[0]))
        return Plan(step, sizes, threshold, similarity, packing, width=x.shape[2])


def is_faster_alone(x: Tensor) -> bool:
    """Return whether the images of a batch are better matched one by one: on a CPU, where no compiler traces."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def proposals(
    x: Tensor,
    tau: float | str | Share | Tensor,
    layer: int,
    num_prefix_tokens: int,
    how_many: HowMany,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities [B, a], threshold and leaders [B, L] of tokens [B, L, D], so many of which are an image's own."""
    if torch.compiler.is_compiling() and not isinstance(how_many, int):
        # It does not know how many A and B tokens there are, and must that neither is a dimension that broadcasts.
        torch._check(num_proposals(x.shape[1], num_prefix_tokens) >= 2)
        torch._check(x.shape[1] - first_receiver(num_prefix_tokens) >= 3)
    similarity, proposer, partner = best_matches(x, num_prefix_tokens, counts)

    def rule(similarity: Tensor) -> Tensor:
        each = gbm_tau(similarity, tau, layer)
        return each.mean() if how_many == "min" and tau == "adaptive" else each

    threshold, merges = choose(similarity, rule, how_many)
    return similarity, threshold, gbm_leaders(merges, proposer, partner, x.shape[1])


def one_by_one(
    images: Sequence[Tensor], tau: float | str | Share | Tensor, layer: int, num_prefix_tokens: int, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`proposals` of each image [1, m, D] alone: to the last bit what it gives in a batch of one.

    On a CPU no slower than all at once, padded.
    """
    taus = tau.split(1) if isinstance(tau, Tensor) and tau.dim() else [tau] * len(images)
    each = [proposals(image, own, layer, num_prefix_tokens, "image") for image, own in zip(images, taus, strict=True)]
    similarity = pad_sequence([found[0] for found, *_ in each], batch_first=True, padding_value=-torch.inf)
    threshold = torch.stack([found.reshape(()) for _, found, _ in each])
    leaders = pad_sequence([found[0] for *_, found in each], batch_first=True, padding_value=-1)
    leaders = torch.nn.functional.pad(leaders, (0, length - leaders.shape[1]), value=-1)
    return similarity, threshold, torch.where(leaders < 0, torch.arange(length), leaders)


def clap_tau(similarity: Tensor, tau: float | str) -> Tensor:
    """The threshold [B] or [] that the setting ``tau`` means for window similarities [B, K]."""
    if tau == "auto":
        return auto_tau(similarity)
    if tau == "paper":
        return paper_tau(similarity)
    return as_tensor(tau, similarity)


def gbm_tau(similarity: Tensor, tau: float | str | Share | Tensor, layer: int) -> Tensor:
    """The threshold [B] or [] that the setting ``gbm_tau`` means for A's best similarities [B, a]."""
    if isinstance(tau, str):
        return adaptive_tau(similarity, layer)
    return tau(similarity) if isinstance(tau, Share) else as_tensor(tau, similarity)


def as_tensor(tau: float | str | Tensor, like: Tensor) -> Tensor:
    return tau if isinstance(tau, Tensor) else like.new_full((), float(tau))


@contextmanager
def planning(x: Tensor) -> Iterator[None]:
    """Matching is neither differentiated nor rounded to the dtype of autocast."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        yield
