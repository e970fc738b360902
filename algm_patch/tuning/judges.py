"""Comparisons of a model's answers: how much of the unpatched model's answer another one keeps; 1 is all of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from .areas import areas_of, equal_share, mean_iou, pooled
from .divergence import disagreement, divergence_of_classes, log_probabilities, relative_error

# Fields of transformers' outputs that are dense.
DENSE_OUTPUTS = ("logits", "predicted_depth", "last_hidden_state")


@dataclass(frozen=True)
class Judge:
    """Compare the answers to some images with the unpatched model's.

    Attributes:
        names: of what is kept; a single number that a user asks for is meant for the first.
        read: reduces the model's output to what is compared, on the CPU.
        compare: finds what counts in two reduced outputs to one image, the unpatched model's first.
        pool: puts what was found of N images into a table [N, ...] float64, whose rows can be added.
        measure: gives by name what is kept [R], of sums [R, ...] over rows of the table.
        sample: reduces the model's output to what its divergence is told from, on the CPU.
        diverge: gives the divergence of two such samples, the unpatched model's first: 0 if they are the same.
    """

    names: tuple[str, ...]
    read: Callable[[Tensor], Tensor]
    compare: Callable[[Tensor, Tensor], Any]
    pool: Callable[[Sequence[Any]], Tensor]
    measure: Callable[[Tensor], dict[str, Tensor]]
    sample: Callable[[Tensor], Tensor]
    diverge: Callable[[Tensor, Tensor], float]


def correlation(values: Tensor, others: Tensor) -> float:
    """Return Pearson's correlation over all pixels; if a map is constant, 1 for an equal map and 0 for another."""
    before, after = (pixels.double().flatten() for pixels in (values, others))
    before, after = before - before.mean(), after - after.mean()
    scale = before.norm() * after.norm()
    return (before @ after / scale).item() if scale > 0 else float(torch.equal(values, others))


def token_cosine(tokens: Tensor, others: Tensor) -> float:
    """Return the mean cosine over the tokens."""
    return cosine_similarity(tokens.double(), others.double(), dim=-1).mean().item()


def keep_all(output: Tensor) -> Tensor:
    """Return the output as it is, on the CPU: Apple GPUs have no float64."""
    return output.cpu()


def whole_numbers(classes: Tensor) -> Tensor:
    """Return a map of classes as int64, whatever whole numbers or booleans it holds."""
    return classes.cpu().long()


def most_likely_class(logits: Tensor) -> Tensor:
    """Return the class of each pixel [B, h, w] int32, from logits [B, classes, h, w]."""
    return logits.argmax(1).to(torch.int32).cpu()


def of_class_maps(areas: Tensor) -> dict[str, Tensor]:
    """Return the share of pixels whose class stays, and the mean IoU over the classes, of areas [..., 3, C]."""
    return {"pixels": equal_share(areas), "classes": mean_iou(areas)}


def with_ones(values: Sequence[float]) -> Tensor:
    """Return a table [N, 2] float64 of a value for each image, and ones to count the images by."""
    return torch.tensor([[value, 1.0] for value in values], dtype=torch.float64)


def judge_of_values(name: str, compare: Callable[[Tensor, Tensor], float]) -> Judge:
    """Return a judge by the mean over the images of a value for each."""

    def mean(sums: Tensor) -> dict[str, Tensor]:
        return {name: sums[..., 0] / sums[..., 1]}

    return Judge((name,), keep_all, compare, with_ones, mean, keep_all, relative_error)


CLASSES = ("pixels", "classes")
CLASS_LOGITS = Judge(
    CLASSES, most_likely_class, areas_of, pooled, of_class_maps, log_probabilities, divergence_of_classes
)
CLASS_MAPS = Judge(CLASSES, whole_numbers, areas_of, pooled, of_class_maps, whole_numbers, disagreement)
CORRELATION = judge_of_values("correlation", correlation)
COSINE = judge_of_values("cosine", token_cosine)


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
            return CLASS_LOGITS
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
