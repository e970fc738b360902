"""Models of the EVA-01 segmentation code."""

from __future__ import annotations

from tests.support import models, models_eva01
from tests.support.contract import Case
from tests.support.models_mmseg import last_tokens


def case(model: str) -> Case:
    """Return the case of one of the EVA-01 models."""
    return Case(
        build=lambda: models_eva01.build(model),
        image=lambda: models.photo(grid=models_eva01.grid_of(model)),
        tokens=last_tokens,
        position_inputs=lambda length: {},
    )


CASES = {f"EVA-01 {model}": case(model) for model in models_eva01.MODELS}
