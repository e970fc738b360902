"""Golden tensors, and the folder of data that ALGM_SHARED names."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

DATA = Path(__file__).parents[1] / "data"


def shared() -> Path | None:
    """Return the folder of golden tensors and labelled images that ALGM_SHARED names; None if it names none."""
    place = os.environ.get("ALGM_SHARED")
    return Path(place) if place else None


def golden_files(pattern: str) -> list[Path]:
    """Return all golden files of ALGM_SHARED whose names match, or the few that the tests carry."""
    place = shared()
    return sorted((place / "golden" if place else DATA).glob(pattern))


def read_golden(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a golden file by name, and what the file says about them."""
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def assert_same_partition(ours: Tensor, theirs: Tensor) -> None:
    """Assert that labels [B, N] make the same groups, however they number them."""
    for a, b in zip(ours, theirs, strict=True):
        pairs = set(zip(a.tolist(), b.tolist(), strict=True))
        assert len(pairs) == len(set(a.tolist())) == len(set(b.tolist()))
