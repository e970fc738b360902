"""The merges that settings ask for, by block, each with its threshold or its count."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from torch import Tensor

from ..core.counts import proposals_to_carry_out, windows_to_merge
from ..core.matching import num_proposals
from ..core.rule import Rule
from ..core.thresholds import Share
from ..settings.settings import Settings

Stage = Literal["CLAP", "GBM"]


class Merge(NamedTuple):
    """Hold one merge that the settings ask for.

    Attributes:
        stage: "CLAP" or "GBM".
        tau: the threshold, or the rule for it; "tau" for GBM: the threshold that CLAP computes during the pass.
        patches_left: the share of its patches, or the number of them, that it leaves; None: it goes by ``tau``.
        window: (height, width) in tokens, of CLAP.
        rule: by which tokens propose to each other, of GBM.
    """

    stage: Stage
    tau: float | str | Share | Tensor
    patches_left: float | int | None
    window: tuple[int, int]
    rule: Rule

    def how_many(self, patches: int, prefix: int, grid: tuple[int, int]) -> int:
        """Return how many windows or proposals merge so that ``patches_left`` of so many patches are left.

        Args:
            grid: (H, W) of the patches, of CLAP.
        """
        assert self.patches_left is not None
        if self.stage == "CLAP":
            return windows_to_merge(self.patches_left, grid, self.window)
        return proposals_to_carry_out(self.patches_left, patches, num_proposals(prefix + patches, prefix))


def merges_of(settings: Settings) -> dict[int, list[Merge]]:
    """Return the merges by block, counted from 0, without those whose threshold merges nothing."""
    merges: dict[int, list[Merge]] = {}
    by_rank = settings.merge_to is not None
    calibrated = settings.calibrated_tau
    clap_tau = settings.tau if calibrated is None else calibrated
    gbm_tau: Any = settings.gbm_tau
    number = 0
    window, rule = settings.window, Rule(settings.matching == "mutual", settings.is_on("size_aware"))
    if settings.clap_layer is not None:
        if by_rank or not isinstance(settings.tau, float) or settings.tau <= 1:
            left = settings.patches_left(number) if by_rank else None
            merges[settings.clap_layer - 1] = [Merge("CLAP", clap_tau, left, window, rule)]
        number += 1
    for index, layer in enumerate(settings.gbm_layers):
        tau = gbm_tau[index] if isinstance(gbm_tau, tuple) else gbm_tau
        if tau == "tau" and not isinstance(clap_tau, str):
            tau = clap_tau
        elif tau == "adaptive" and settings.tau == "auto":
            tau = "auto"
        if by_rank or not isinstance(tau, float) or tau <= 1:
            left = settings.patches_left(number + index) if by_rank else None
            merges.setdefault(layer - 1, []).append(Merge("GBM", tau, left, window, rule))
    return merges
