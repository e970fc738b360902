"""Models of unknown classes whose blocks are told of places."""

from __future__ import annotations

from tests.support import models, models_of_positions
from tests.support.contract import Case


def case(kind: str) -> Case:
    """Return the case of one of KINDS."""
    return Case(
        build=lambda: models_of_positions.build(kind),
        image=models.photo,
        tokens=lambda model, image: model(image),
        position_inputs=lambda length: {},
    )


CASES = {f"unknown, {kind}": case(kind) for kind in models_of_positions.KINDS}
