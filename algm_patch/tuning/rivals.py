"""Other ways to save, for comparison: Token Merging's schedule, and a lower resolution with nothing merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..settings.settings import Settings
from ..settings.trial import Rival
from .bench import Bench
from .budget import OutOfTime
from .cost import Run

# The parts of its patches that Token Merging merges in each block, all together; and what sides are multiplied with.
MERGED, SCALES = (0.5, 0.7), (0.85, 0.7)
# How Token Merging matches (Bolya et al., 2023, §3), as far as settings say it.
TOME: dict[str, Any] = {
    "clap_layer": None,
    "tau": "auto",
    "gbm_tau": "adaptive",
    "compare": "key",
    "proportional_attention": True,
    "reduce": "mean",
    "place": "before_mlp",
    "matching": "bipartite",
    "size_aware": False,
    "restore": False,
}


def measure_rivals(bench: Bench) -> None:
    """Measure rivals on the images that tell what is kept; what cannot be measured is noted with the reason.

    Raises:
        OutOfTime: if the budget is spent.
    """
    past, _ = bench.prediction.passes[0]
    patches = past.grid[0] * past.grid[1]
    several_sizes = len({image.shape for image in (*bench.giving, *bench.telling)}) > 1
    for part in MERGED:
        each = max(1, round(part * patches / past.depth))
        if several_sizes:
            bench.notes.append(
                f"ToMe, r = {each} was not measured: its counts are of one image size, and there are more"
            )
            continue
        settings = tome(bench.merge_nothing, patches, each, past.depth)
        add(bench, f"ToMe, r = {each}", partial(with_settings, bench, settings))
    if bench.reference.metric is not None:
        bench.notes.append("a lower resolution was not measured: a metric is given the model, not the images")
        return
    for scale in SCALES:
        sides = tuple(max(1, round(scale * side)) for side in past.grid)
        add(bench, f"lower resolution, {sides[0]} x {sides[1]} patches", partial(at_scale, bench, scale))


def add(bench: Bench, name: str, measure: Callable[[], tuple[dict[str, float], dict[str, float], float]]) -> None:
    """Add a rival to the bench, or a note that says why it could not be measured."""
    try:
        kept, low, cost = measure()
    except OutOfTime:
        raise
    except Exception as error:  # the settings that were found stay all the same
        bench.notes.append(f"{name} was not measured: {type(error).__name__}: {error}"[:250])
        return
    bench.rivals.append(Rival(name, kept, cost, low))


def tome(base: Settings, patches: int, each: int, depth: int) -> Settings:
    """Return settings that merge as many tokens in every block, for images of this number of patches."""
    left = tuple(patches - each * block for block in range(1, depth + 1))
    return replace(base, **TOME, gbm_layers=tuple(range(1, depth + 1)), merge_to=left)


def with_settings(bench: Bench, settings: Settings) -> tuple[dict[str, float], dict[str, float], float]:
    """Return what settings keep, its bound, and the cost."""
    with bench.handle.using(settings=settings):
        return bench.judged(bench.run)


def at_scale(bench: Bench, scale: float) -> tuple[dict[str, float], dict[str, float], float]:
    """Return what is kept, its bound, and the cost, if images are smaller and answers are enlarged again."""
    past, _ = bench.prediction.passes[0]

    def run(image: Tensor) -> Run:
        patch = [side // count for side, count in zip(image.shape[2:], past.grid, strict=True)]
        size = [max(1, round(scale * side / each)) * each for side, each in zip(image.shape[2:], patch, strict=True)]
        try:
            found = bench.run(interpolate(image, size, mode="bilinear", antialias=True))
        except OutOfTime:
            raise
        except Exception as error:  # a model that takes images of one size says so in many ways
            raise ValueError(
                f"on images of {size[0]} x {size[1]} pixels the model raises {type(error).__name__}: {error} (a ViT of "
                "timm takes any size with dynamic_img_size=True)"
            ) from error
        whole = [side // each for side, each in zip(image.shape[2:], patch, strict=True)]
        return replace(found, answer=enlarged(found, image.shape[2:], size, whole))

    return bench.judged(run)


def enlarged(found: Run, size: Any, smaller: list[int], grid: list[int]) -> Tensor:
    """Return an answer to a smaller image as large as that to the whole one.

    Args:
        found: the answer: logits [1, C, h, w], a map [1, h, w] or [1, 1, h, w], or tokens [1, P+N, D] or [1, H, W, D].
        size: of the whole image, (height, width) in pixels.
        smaller: of the smaller one.
        grid: of the whole image, in patches.
    """
    answer, past = found.answer, found.passes[0]
    patches = past.grid[0] * past.grid[1]
    if tuple(answer.shape[1:]) in ((past.num_prefix_tokens + patches, past.width), (patches, past.width)):
        prefix, tokens = answer.split([answer.shape[1] - patches, patches], 1)
        maps = tokens.mT.unflatten(2, past.grid)
        return torch.cat([prefix, interpolate(maps, grid, mode="bilinear").flatten(2).mT], 1)
    if tuple(answer.shape[1:]) == (*past.grid, past.width):
        return interpolate(answer.movedim(-1, 1), grid, mode="bilinear").movedim(1, -1)
    maps = answer if answer.dim() == 4 else answer[:, None]
    target = [round(side * whole / less) for side, whole, less in zip(maps.shape[2:], size, smaller, strict=True)]
    if not maps.is_floating_point():
        return interpolate(maps.float(), target, mode="nearest").to(maps.dtype).view(len(maps), *target)
    maps = interpolate(maps, target, mode="bilinear")
    return maps if answer.dim() == 4 else maps[:, 0]
