"""The beginning of a search: the model patched so that it merges nothing, and what it answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..apply import apply_algm
from ..settings.settings import Settings
from .bench import Bench
from .budget import Budget
from .cost import Predict, Run, run
from .keeping import Keep, wanted
from .prediction import predict_from
from .reference import Metric, split, take_reference

# Changes of settings with which nothing merges.
MERGE_NOTHING: dict[str, Any] = {
    "clap_layer": None,
    "tau": 1.0,
    "gbm_layers": (),
    "gbm_tau": "adaptive",
    "compare": "token",
    "matching": "bipartite",
    "merge_to": None,
}


def open_bench(
    model: nn.Module,
    images: list[Tensor],
    keep: Keep,
    predict: Predict,
    metric: Metric | None,
    unit: str,
    budget: Budget,
    before: Settings | None,
) -> Bench:
    """Patch a model so that it merges nothing, take its answers, and return what measures settings against them.

    Args:
        keep, predict, metric: as for ``algm_patch.tune``.
        unit: of costs, "GFLOPs" or "seconds".
        before: the settings of a model that was patched already. What is not searched stays, except for fixed counts
            and a calibrated threshold: the thresholds that are searched replace them.

    Raises:
        OutOfTime: if the budget is spent.
        ValueError, TypeError: if the model cannot be patched, or its answers cannot be compared.
    """
    base = replace(before or Settings(), merge_to=None, record=None, calibrated=None)
    merge_nothing = replace(base, **MERGE_NOTHING)
    apply_algm(model, settings=merge_nothing)

    def within_budget(image: Tensor) -> Run:
        budget.check()
        return run(model, predict, image)

    giving, telling = split(images)
    first, reference = take_reference(model, giving, telling, within_budget, metric, unit)
    parts, prediction = wanted(keep, reference.names), predict_from(model, first, guess=unit == "seconds")
    return Bench(
        model,
        giving,
        telling,
        len(images),
        parts,
        unit,
        within_budget,
        budget,
        base,
        merge_nothing,
        reference,
        prediction,
    )
