"""Models of transformers; none where it is not installed."""

from __future__ import annotations

import importlib.util

from tests.support.contract import Case

CASES: dict[str, Case] = {}

if importlib.util.find_spec("transformers"):
    from tests.support import models_huggingface as huggingface

    def case(family: str) -> Case:
        """Return the case of one of transformers' families."""
        return Case(
            build=lambda: huggingface.build(family),
            image=huggingface.photo,
            tokens=huggingface.tokens(family),
            position_inputs=lambda length: huggingface.mask(length) if huggingface.takes_mask(family) else {},
        )

    CASES = {f"transformers {family}": case(family) for family in huggingface.EVERY}
