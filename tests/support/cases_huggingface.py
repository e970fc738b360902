"""Models of transformers."""

from __future__ import annotations

import importlib.util

from tests.support.contract import Case

CASES: dict[str, Case] = {}


if importlib.util.find_spec("transformers"):
    from tests.support import models_huggingface as huggingface

    CASES = {
        f"transformers {family}": Case(
            lambda family=family: huggingface.build(family),
            huggingface.photo,
            huggingface.tokens(family),
            lambda length, family=family: huggingface.mask(length) if huggingface.takes_mask(family) else {},
        )
        for family in huggingface.FAMILIES
    }
