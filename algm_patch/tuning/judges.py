"""How much of the unpatched model's answer another answer keeps: 1 is all of it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

# What a model returns that is dense, by the names of transformers' outputs.
DENSE = ("logits", "predicted_depth", "last_hidden_state")


@dataclass(frozen=True)
class Judge:
    """One way to compare two answers to one image.

    Attributes:
        name: of what is compared.
        read: from the model's output to what is worth keeping of it.
        compare: two of these, to at most 1.
    """

    name: str
    read: Callable[[Tensor], Tensor]
    compare: Callable[[Tensor, Tensor], float]


def agreement(classes: Tensor, others: Tensor) -> float:
    """Return the share of pixels of the same class."""
    same = classes == others
    return int(same.sum()) / same.numel()


def correlation(values: Tensor, others: Tensor) -> float:
    """Return Pearson's, over all pixels. Of a constant map: whether the other is the same."""
    one, other = (in_float64(map_).flatten() for map_ in (values, others))
    one, other = one - one.mean(), other - other.mean()
    scale = one.norm() * other.norm()
    return (one @ other / scale).item() if scale > 0 else float(torch.equal(values, others))


def token_cosine(tokens: Tensor, others: Tensor) -> float:
    """Return the mean cosine over the tokens."""
    return cosine_similarity(in_float64(tokens), in_float64(others), dim=-1).mean().item()


def in_float64(x: Tensor) -> Tensor:
    """Return a copy on the CPU: Apple GPUs have no float64."""
    return x.cpu().double()


def keep_all(output: Tensor) -> Tensor:
    return output


AGREEMENT = Judge("agreement", lambda logits: logits.argmax(1).to(torch.int32), agreement)
CLASS_MAPS = Judge("agreement", keep_all, agreement)
CORRELATION = Judge("correlation", keep_all, correlation)
COSINE = Judge("cosine", keep_all, token_cosine)


def token_shapes(grid: tuple[int, int], num_prefix_tokens: int, width: int) -> set[tuple[int, ...]]:
    """Return the shapes, without the batch, in which models return the tokens of an image.

    Args:
        grid: height and width of the image in tokens.
        num_prefix_tokens: P.
        width: D.

    Returns:
        [P+N, D], [N, D] and [H, W, D].
    """
    patches = grid[0] * grid[1]
    return {(num_prefix_tokens + patches, width), (patches, width), (*grid, width)}


def judge_of(output: Any, tokens: Collection[tuple[int, ...]] = ()) -> Judge:
    """Return the judge for what a model, or the user's ``predict``, returns.

    Args:
        output: logits [B, classes, h, w], values [B, h, w] or [B, 1, h, w], classes [B, h, w] of whole numbers, or
            tokens in one of the shapes of ``tokens``. Floating point numbers in such a shape are always taken for
            tokens: a map of values that has it by chance is unmistakable as [B, 1, h, w].
        tokens: as :func:`token_shapes` returns them. Default: nothing is taken for tokens.

    Raises:
        TypeError, ValueError: if it is none of these.
    """
    if isinstance(output, Tensor) and output.dim() in (3, 4) and output.numel():
        one_channel = output.dim() == 4 and output.shape[1] == 1
        if output.is_floating_point() and tuple(output.shape[1:]) in tokens and not one_channel:
            return COSINE
        if output.dim() == 4 and not one_channel:
            return AGREEMENT
        return CORRELATION if output.is_floating_point() else CLASS_MAPS
    found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise (ValueError if isinstance(output, Tensor) else TypeError)(
        f"predict returned {found}, which is no dense answer. Pass predict=function(model, images) that returns logits "
        "[B, classes, h, w], a map [B, h, w] or tokens [B, L, D]"
    )


def predict_dense(model: nn.Module, images: Tensor) -> Any:
    """What a model answers, unless the user says how: a timm ViT its tokens, everything else what it returns."""
    output = getattr(model, "forward_features", model)(images)
    for name in DENSE:
        if isinstance(found := getattr(output, name, None), Tensor):
            return found
    return output
