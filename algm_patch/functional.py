"""The two merges of ALGM as functions on tokens, for blocks of one's own."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from .core.checks import check_choice, check_layer, check_tau, check_window
from .core.plan import Batch, plan_clap, plan_gbm, warn_of_nothing
from .core.token_map import TokenMap

__all__ = ["TokenMap", "clap", "gbm"]


def clap(
    x: Tensor,
    grid: tuple[int, int],
    tau: float | str,
    *,
    window: tuple[int, int] = (2, 2),
    num_prefix_tokens: int = 1,
    batch: Batch = "min",
) -> tuple[Tensor, TokenMap]:
    """Merge each window of similar tokens into their mean: conditional local average pooling (paper §3.2).

    Tokens stay in raster order, a merged one where its first member stood.

    Args:
        x: [B, P+H*W, D] tokens, prefix first, then patches in raster order.
        grid: (H, W). Rows and columns that the window does not divide stay as they are.
        tau: merge windows whose mean cosine is at least this; above 1 nothing merges. "auto" and "paper" as in
            `algm_patch.apply_algm`.
        window: (height, width) in tokens.
        num_prefix_tokens: P; never merged, never changed.
        batch: "min": every image merges the same number of windows, the smallest count over the batch, each image its
            own most similar ones. "image": each image as many as pass; M is the largest number left, and the others
            have zeros behind their tokens.

    Returns:
        merged [B, P+M, D] and the map from the P+N tokens to the P+M, with sizes zero past an image's own.

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
    check_choice("batch", batch, get_args(Batch))
    tau = check_tau("tau", tau, ("auto", "paper"))
    plan = plan_clap(x, (high, wide), tau, check_window(window), num_prefix_tokens, batch)
    if tau == "paper":
        warn_of_nothing(plan)
    return plan.step.unpack(plan(x)), plan.step


def gbm(
    x: Tensor,
    token_map: TokenMap,
    *,
    layer: int,
    tau: float | str = "adaptive",
    num_prefix_tokens: int = 1,
    batch: Batch = "min",
) -> tuple[Tensor, TokenMap]:
    """Let tokens at even positions join their most similar one at odd positions: global bipartite matching (§3.2).

    Each odd token becomes the size-weighted mean of itself and all that joined it.

    Args:
        x: [B, P+M, D] tokens, prefix first.
        token_map: from the original tokens to those of ``x``, as `clap` returns it, or
            `TokenMap.identity`.
        layer: of the merge, counted from 1; the adaptive threshold falls with it.
        tau: a number: carry out proposals at least this similar. "adaptive": the authors' rule, mean + std / layer
            of the image's best similarities; with batch="min", the mean of these over the batch.
        num_prefix_tokens: P; they neither leave nor receive.
        batch: "min": every image merges the same number, the smallest count over the batch. "image": each image as many
            as pass, as in `clap`.

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
    check_choice("batch", batch, get_args(Batch))
    if batch == "min" and token_map.packing is not None:
        raise ValueError("gbm got images of different lengths, which do not merge the same number. Pass batch='image'")
    tau = check_tau("tau", tau, ("adaptive",))
    sequence = token_map.pack(x)
    plan = plan_gbm(
        sequence, token_map.sizes, tau, check_layer("layer", layer), num_prefix_tokens, batch, token_map.packing
    )
    return plan.step.unpack(plan(sequence)), token_map.then(plan.step)


def check_tokens(x: Tensor, num_prefix_tokens: int) -> None:
    if x.dim() != 3 or not x.is_floating_point():
        raise ValueError(f"tokens are floating point [B, P+N, D], got {x.dtype} {list(x.shape)}")
    if not 0 <= num_prefix_tokens <= x.shape[1]:
        raise ValueError(f"num_prefix_tokens={num_prefix_tokens} does not fit {x.shape[1]} tokens")
