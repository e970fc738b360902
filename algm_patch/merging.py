"""The two merges of ALGM as functions on tokens: matching, threshold, merge."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .matching import best_matches, clap_leaders, gbm_leaders, window_similarity
from .settings import check_layer, check_tau, check_window
from .thresholds import Share, adaptive_tau, auto_tau, paper_tau
from .tokens import TokenMap


@dataclass(frozen=True, eq=False)
class Plan:
    """What one merge does to a sequence, decided without gradients.

    Attributes:
        step: from the tokens of the sequence to those that are left.
        sizes: [B, L], before the merge.
        tau: [B] or [], the threshold.
        similarity: what it was compared with: [B, h, w] of the windows, or [B, a] of A's best matches.
        picked: [B, M]; the position of the member that stands for each group. None: the members' mean does.
    """

    step: TokenMap
    sizes: Tensor
    tau: Tensor
    similarity: Tensor
    picked: Tensor | None = None

    @property
    def merges(self) -> bool:
        return self.step.sizes.shape[1] < self.sizes.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        if self.picked is None:
            return self.step.merge(x, self.sizes)
        return x.gather(1, self.picked[..., None].expand(-1, -1, x.shape[2]))

    def picking(self, generator: torch.Generator) -> Plan:
        """The same groups, each as one of its members, picked at random (supplement, Tab. 4c)."""
        labels = self.step.labels
        # The first member of a group, in a random order of the tokens.
        order = torch.rand(labels.shape, generator=generator).argsort(1).to(labels.device)
        shuffled = TokenMap(labels.gather(1, order), self.step.sizes)
        return replace(self, picked=order.gather(1, shuffled.first))


def clap(
    x: Tensor,
    grid: tuple[int, int],
    tau: float | str,
    *,
    window: tuple[int, int] = (2, 2),
    num_prefix_tokens: int = 1,
) -> tuple[Tensor, TokenMap]:
    """Conditional local average pooling: each window of similar tokens becomes their mean (paper §3.2).

    Tokens stay in raster order, a merged one where its first member stood. In a batch every image merges the
    same number of windows: the smallest count over the batch, each image its own most similar ones.

    Args:
        x: [B, P+H*W, D] tokens, prefix first, then patches in raster order.
        grid: (H, W). Rows and columns that the window does not divide stay as they are.
        tau: merge windows whose mean cosine is at least this; above 1 nothing merges. "auto" and "paper" as in
            :func:`algm_patch.apply_algm`.
        window: (height, width) in tokens.
        num_prefix_tokens: P; never merged, never changed.

    Returns:
        merged [B, P+M, D] and the map from the P+N tokens to the P+M.

    Raises:
        ValueError, TypeError: if the tokens are not the grid's, or a setting is out of its range.
    """
    high, wide = grid
    check_tokens(x, num_prefix_tokens)
    if x.shape[1] != num_prefix_tokens + high * wide:
        raise ValueError(
            f"clap got {x.shape[1]} tokens where {num_prefix_tokens} prefix + {high}x{wide} patches "
            f"are {num_prefix_tokens + high * wide}"
        )
    plan = plan_clap(x, (high, wide), check_tau("tau", tau, ("auto", "paper")), check_window(window), num_prefix_tokens)
    if tau == "paper":
        warn_of_nothing(plan)
    return plan(x), plan.step


def gbm(
    x: Tensor,
    token_map: TokenMap,
    *,
    layer: int,
    tau: float | str = "adaptive",
    num_prefix_tokens: int = 1,
) -> tuple[Tensor, TokenMap]:
    """Global bipartite matching: tokens at even positions join their most similar one at odd positions (paper §3.2).

    Each odd token becomes the size-weighted mean of itself and all that joined it. In a batch every image merges
    the same number: the smallest count over the batch.

    Args:
        x: [B, P+M, D] tokens, prefix first.
        token_map: from the original tokens to those of ``x``, as :func:`clap` returns it, or
            :meth:`TokenMap.identity`.
        layer: of the merge, counted from 1; the adaptive threshold falls with it.
        tau: a number: carry out proposals at least this similar. "adaptive": the authors' rule, mean + std / layer
            of the best similarities, averaged over the batch.
        num_prefix_tokens: P; they neither leave nor receive.

    Returns:
        merged [B, P+M', D] and the composed map, from the original tokens to the P+M'.

    Raises:
        ValueError, TypeError: if the map is not that of ``x``, or a setting is out of its range.
    """
    check_tokens(x, num_prefix_tokens)
    if token_map.sizes.shape != x.shape[:2]:
        raise ValueError(
            f"gbm got {list(x.shape[:2])} tokens and a map to {list(token_map.sizes.shape)}: "
            "pass the map that came with these tokens"
        )
    tau = check_tau("tau", tau, ("adaptive",))
    plan = plan_gbm(x, token_map.sizes, tau, check_layer("layer", layer), num_prefix_tokens)
    return plan(x), token_map.then(plan.step)


def check_tokens(x: Tensor, num_prefix_tokens: int) -> None:
    if x.dim() != 3 or not x.is_floating_point():
        raise ValueError(f"tokens are floating point [B, P+N, D], got {x.dtype} {list(x.shape)}")
    if not 0 <= num_prefix_tokens <= x.shape[1]:
        raise ValueError(f"num_prefix_tokens={num_prefix_tokens} does not fit {x.shape[1]} tokens")


def plan_clap(
    x: Tensor, grid: tuple[int, int], tau: float | str, window: tuple[int, int], num_prefix_tokens: int
) -> Plan:
    with planning(x):
        similarity = window_similarity(x[:, num_prefix_tokens:], grid, window)
        threshold = clap_tau(similarity.flatten(1), tau)
        leaders = clap_leaders(similarity, threshold, grid, window, num_prefix_tokens)
        sizes = similarity.new_ones(x.shape[:2])
        return Plan(TokenMap.from_leaders(leaders, sizes), sizes, threshold, similarity)


def warn_of_nothing(plan: Plan) -> None:
    """Say so if the threshold as published is one that merges nothing (a plan of CLAP)."""
    if not plan.merges and plan.similarity.numel():
        warnings.warn(
            f"tau='paper' merges nothing here: mean + standard deviation is {plan.tau.max():.4f}, "
            f"the most similar window {plan.similarity.max():.4f}. Use tau='auto' or a number",
            stacklevel=2,
        )


def plan_gbm(x: Tensor, sizes: Tensor, tau: float | str | Share | Tensor, layer: int, num_prefix_tokens: int) -> Plan:
    with planning(x):
        similarity, proposer, partner = best_matches(x, num_prefix_tokens)
        threshold = gbm_tau(similarity, tau, layer)
        leaders = gbm_leaders(similarity, proposer, partner, threshold, x.shape[1])
        return Plan(TokenMap.from_leaders(leaders, sizes), sizes, threshold, similarity)


def clap_tau(similarity: Tensor, tau: float | str) -> Tensor:
    """The threshold [B] or [] that the setting ``tau`` means for window similarities [B, K]."""
    if tau == "auto":
        return auto_tau(similarity)
    if tau == "paper":
        return paper_tau(similarity)
    return as_tensor(tau, similarity)


def gbm_tau(similarity: Tensor, tau: float | str | Share | Tensor, layer: int) -> Tensor:
    """The threshold [B] or [] that the setting ``gbm_tau`` means for A's best similarities [B, a]."""
    if tau == "adaptive":
        return adaptive_tau(similarity, layer)
    return tau(similarity) if isinstance(tau, Share) else as_tensor(tau, similarity)


def as_tensor(tau: float | str | Tensor, like: Tensor) -> Tensor:
    return tau if isinstance(tau, Tensor) else like.new_full((), float(tau))


@contextmanager
def planning(x: Tensor) -> Iterator[None]:
    """Matching is neither differentiated nor rounded to the dtype of autocast."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        yield
