"""Comparisons of a model's answers: how much of the unpatched model's answer another one keeps; 1 is all of it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

# Fields of transformers' outputs that are dense.
DENSE_OUTPUTS = ("logits", "predicted_depth", "last_hidden_state")


@dataclass(frozen=True)
class Judge:
    """Compare two answers to one image.

    Attributes:
        name: what the comparison gives.
        read: reduces the model's output to what is compared.
        compare: maps two reduced outputs, the unpatched model's first, to a number of at most 1.
    """

    name: str
    read: Callable[[Tensor], Tensor]
    compare: Callable[[Tensor, Tensor], float]


def agreement(classes: Tensor, others: Tensor) -> float:
    """Return the share of pixels of the same class."""
    same = classes == others
    return int(same.sum()) / same.numel()


def correlation(values: Tensor, others: Tensor) -> float:
    """Return Pearson's correlation over all pixels; if a map is constant, 1 for an equal map and 0 for another."""
    before, after = (in_float64(pixels).flatten() for pixels in (values, others))
    before, after = before - before.mean(), after - after.mean()
    scale = before.norm() * after.norm()
    return (before @ after / scale).item() if scale > 0 else float(torch.equal(values, others))


def token_cosine(tokens: Tensor, others: Tensor) -> float:
    """Return the mean cosine over the tokens."""
    return cosine_similarity(in_float64(tokens), in_float64(others), dim=-1).mean().item()


def in_float64(x: Tensor) -> Tensor:
    """Return a copy on the CPU: Apple GPUs have no float64."""
    return x.cpu().double()


def keep_all(output: Tensor) -> Tensor:
    """Return the output as it is."""
    return output


def most_likely_class(logits: Tensor) -> Tensor:
    """Return the class of each pixel [B, h, w] int32, from logits [B, classes, h, w]."""
    return logits.argmax(1).to(torch.int32)


AGREEMENT = Judge("agreement", most_likely_class, agreement)
CLASS_MAPS = Judge("agreement", keep_all, agreement)
CORRELATION = Judge("correlation", keep_all, correlation)
COSINE = Judge("cosine", keep_all, token_cosine)


def token_shapes(grid: tuple[int, int], num_prefix_tokens: int, width: int) -> set[tuple[int, ...]]:
    """Return the shapes in which models return the tokens of one image: (P+N, D), (N, D) and (H, W, D).

    Args:
        grid: height H and width W of the image in tokens; N = H·W.
        num_prefix_tokens: P.
        width: D, channels of a token.
    """
    patches = grid[0] * grid[1]
    return {(num_prefix_tokens + patches, width), (patches, width), (*grid, width)}


def judge_of(output: Any, tokens: Collection[tuple[int, ...]] = ()) -> Judge:
    """Return the judge for an output of a model or of the user's ``predict``.

    Args:
        output: logits [B, classes, h, w], values [B, h, w] or [B, 1, h, w], whole numbers of classes [B, h, w], or
            tokens in one of the shapes of ``tokens``. Floating point numbers in such a shape always count as tokens.
            A map of values that has this shape by chance must be given as [B, 1, h, w].
        tokens: shapes of tokens, as ``token_shapes`` returns them. Default: nothing counts as tokens.

    Raises:
        TypeError: if the output is no tensor.
        ValueError: if its shape is none of these.
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
    """Return the dense answer of a model: a timm ViT's tokens, or what any other model returns.

    This is the default of ``predict`` in ``algm_patch.tune``.
    """
    output = getattr(model, "forward_features", model)(images)
    for name in DENSE_OUTPUTS:
        if isinstance(found := getattr(output, name, None), Tensor):
            return found
    return output
