"""Models of mmsegmentation."""

from __future__ import annotations

from tests.support import models, models_mmseg
from tests.support.contract import Case


def case(family: str) -> Case:
    """Return the case of one of mmsegmentation's backbones."""
    return Case(
        build=lambda: models_mmseg.backbone(family),
        image=models.photo,
        tokens=models_mmseg.last_tokens,
        position_inputs=lambda length: {},
    )


CASES = {f"mmseg {family}": case(family) for family in models_mmseg.BACKBONES}
