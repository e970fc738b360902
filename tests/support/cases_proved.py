"""Models of blocks that no adapter is registered for."""

from __future__ import annotations

from typing import Any

from torch.nn.functional import silu

from tests.support import models, plain_vits
from tests.support.contract import Case

# Torch's layer runs another kernel in eval mode, unless its activation is one that this kernel does not know.
OPTIONS: dict[str, dict[str, Any]] = {"torch's layer": {"activation": silu}}


def case(kind: str) -> Case:
    """Return the case of one of the kinds of blocks."""
    return Case(
        build=lambda: plain_vits.build(plain_vits.KINDS[kind], depth=5, **OPTIONS.get(kind, {})),
        image=models.photo,
        tokens=lambda model, image: model(image),
        position_inputs=lambda length: {},
    )


CASES = {f"proved {kind}": case(kind) for kind in plain_vits.KINDS}
