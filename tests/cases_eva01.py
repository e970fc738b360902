"""Models of the EVA-01 segmentation code."""

import models
import models_eva01
from contract import Case
from models_mmseg import last_tokens

CASES = {
    f"EVA-01 {model}": Case(
        lambda model=model: models_eva01.build(model),
        lambda model=model: models.photo(grid=models_eva01.grid_of(model)),
        last_tokens,
        lambda length: {},
    )
    for model in models_eva01.MODELS
}
