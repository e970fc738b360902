"""The thresholds by which given shares of the windows and proposals of some images merge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..core.thresholds import Share, reached_by
from ..settings.settings import Settings
from ..trunks import handle_of
from .candidates import TWENTIETHS, Candidate
from .probe import similarities


@dataclass
class Thresholds:
    """Turn the shares of candidates into thresholds.

    Attributes:
        model: patched.
        images: [1, 3, H, W] each, from which thresholds are taken.
        forward: runs the model on one of them.
        merge_nothing: settings that merge nothing, whose other values the thresholds come with.
    """

    model: nn.Module
    images: list[Tensor]
    forward: Callable[[Tensor], Any]
    merge_nothing: Settings
    _measured: dict[Settings, list[Tensor]] = field(default_factory=dict, init=False, repr=False)

    def settings_of(self, candidate: Candidate) -> Settings:
        """Return settings whose thresholds merge the shares of a candidate on these images."""
        settings = replace(self.merge_nothing, compare=candidate.compare)
        if candidate.clap:
            settings = replace(settings, clap_layer=candidate.clap_layer, tau=1.0)
            (windows,) = self._similarities(settings, "CLAP", (candidate.clap_layer,))
            settings = replace(settings, tau=threshold(windows, candidate.clap))
        if candidate.gbm_layers:
            share = Share(candidate.gbm, TWENTIETHS)
            settings = replace(settings, gbm_layers=candidate.gbm_layers, gbm_tau=share)
            proposals = self._similarities(settings, "GBM", candidate.gbm_layers)
            settings = replace(settings, gbm_tau=tuple(threshold(layer, candidate.gbm) for layer in proposals))
        return settings

    def _similarities(self, settings: Settings, stage: str, layers: tuple[int, ...]) -> list[Tensor]:
        """Return what a stage compares under some settings: [K] for each of its layers, over all images."""
        if settings not in self._measured:
            with handle_of(self.model).using(settings=settings):
                found = [similarities(self.model, stage, layers, partial(self.forward, image)) for image in self.images]
            self._measured[settings] = [torch.cat(layer) for layer in zip(*found, strict=True)]
        return self._measured[settings]


def threshold(similarity: Tensor, twentieths: int) -> float:
    """Return the threshold that a share of the similarities [K], in twentieths, reaches; 1 if there is no similarity.

    It is at most 1, where only equal tokens merge.
    """
    return min(reached_by(similarity[None], twentieths, TWENTIETHS).item(), 1.0) if len(similarity) else 1.0
