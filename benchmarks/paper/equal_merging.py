"""Find thresholds with which settings merge as many tokens of some images as a reference does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from algm_patch import Settings, calibrate
from algm_patch.tuning.probe import similarities

from ..common.patching import patched
from .ablation_tables import Table

NOTHING = 2.0  # a threshold above every cosine


@dataclass(frozen=True)
class Merged:
    """Count what the reference merges over all images.

    Attributes:
        tokens: patch tokens before.
        local: tokens that CLAP removes.
        everywhere: tokens that GBM removes in each of its layers.
    """

    tokens: int
    local: int
    everywhere: tuple[int, ...]


def count_merged(model: nn.Module, images: Sequence[Tensor], base: Settings) -> tuple[Settings, Merged]:
    """Return settings with one CLAP threshold for all images, and what they merge.

    Args:
        images: [1, 3, H, W] each.
        base: with a CLAP layer and GBM layers.
    """
    with patched(model, base):
        tau = base.tau if isinstance(base.tau, float) else calibrate(model, images)
    base = base.replace(tau=tau)
    tokens, local, everywhere = 0, 0, [0 for _ in base.gbm_layers]
    with patched(model, base) as handle, torch.inference_mode():
        for image in images:
            model(image)
            patches = math.prod(handle.last_pass.grid)
            left = [count - handle.last_pass.num_prefix_tokens for count in handle.tokens_per_layer]
            by_clap = (math.prod(base.window) - 1) * int((handle.window_similarity >= tau).sum())
            tokens += patches
            local += by_clap
            for index, layer in enumerate(base.gbm_layers):
                before = left[layer - 2] if layer > 1 else patches
                everywhere[index] += before - left[layer - 1] - by_clap * (layer == base.clap_layer)
    return base, Merged(tokens, local, tuple(everywhere))


def equalise(model: nn.Module, images: Sequence[Tensor], table: Table, base: Settings, merged: Merged) -> Table:
    """Return the table with thresholds in each row that merge as much as the reference ``base``."""
    rows = []
    for row in table.rows:
        settings = equal_clap(model, images, row.settings, base, merged.local)
        if table.equal:
            settings = equal_gbm(model, images, settings, merged.everywhere)
        rows.append(replace(row, settings=settings))
    return replace(table, rows=rows)


def equal_clap(model: nn.Module, images: Sequence[Tensor], settings: Settings, base: Settings, count: int) -> Settings:
    """Return settings with the threshold by which CLAP removes ``count`` tokens."""
    if all(getattr(settings, name) == getattr(base, name) for name in ("compare", "place", "clap_layer", "window")):
        return settings  # it compares the same windows
    measuring = settings.replace(tau="auto", gbm_layers=(), gbm_tau="adaptive")
    windows = all_similarities(model, images, measuring, settings.clap_layer, "CLAP")
    return settings.replace(tau=threshold_of(windows, round(count / (math.prod(settings.window) - 1))))


def equal_gbm(model: nn.Module, images: Sequence[Tensor], settings: Settings, counts: Sequence[int]) -> Settings:
    """Return settings with the thresholds by which GBM removes so many tokens in each of its layers."""
    found: list[float] = []
    for layer, count in zip(settings.gbm_layers, counts, strict=True):
        so_far = settings.gbm_layers[: len(found) + 1]
        measuring = settings.replace(gbm_layers=so_far, gbm_tau=gbm_tau([*found, 1.0]))
        found.append(threshold_of(all_similarities(model, images, measuring, layer, "GBM"), count))
    return settings.replace(gbm_tau=gbm_tau(found))


def all_similarities(
    model: nn.Module, images: Sequence[Tensor], settings: Settings, layer: int | None, stage: str
) -> Tensor:
    """Return the similarities [K] of all windows ("CLAP") or proposals ("GBM") of all images."""
    with patched(model, settings):
        return torch.cat([similarities(model, stage, [layer or 1], partial(model, image))[0] for image in images])


def gbm_tau(taus: Sequence[float]) -> Any:
    """Return GBM's threshold, or one for each of its layers."""
    return taus[0] if len(taus) == 1 else tuple(taus)


def threshold_of(candidates: Tensor, count: int) -> float:
    """Return the threshold that ``count`` candidates [K] reach."""
    return NOTHING if count < 1 else candidates.sort(descending=True).values[:count][-1].item()
