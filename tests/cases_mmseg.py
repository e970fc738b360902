"""Models of mmsegmentation."""

import models
import models_mmseg
from contract import Case

CASES = {
    f"mmseg {family}": Case(
        lambda family=family: models_mmseg.backbone(family),
        models.photo,
        models_mmseg.last_tokens,
        lambda length: {},
    )
    for family in models_mmseg.BACKBONES
}
