"""Models of the EVA-01 segmentation code."""

from tests.support import models, models_eva01
from tests.support.contract import Case
from tests.support.models_mmseg import last_tokens

CASES = {
    f"EVA-01 {model}": Case(
        lambda model=model: models_eva01.build(model),
        lambda model=model: models.photo(grid=models_eva01.grid_of(model)),
        last_tokens,
        lambda length: {},
    )
    for model in models_eva01.MODELS
}
