"""Models of mmsegmentation."""

from tests.support import models, models_mmseg
from tests.support.contract import Case

CASES = {
    f"mmseg {family}": Case(
        lambda family=family: models_mmseg.backbone(family),
        models.photo,
        models_mmseg.last_tokens,
        lambda length: {},
    )
    for family in models_mmseg.BACKBONES
}
