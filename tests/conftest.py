"""Golden tensors, and the data that tests use where it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from safetensors import safe_open
from torch import Tensor

# Shapes are random, machines are slow: bound the number of examples, not their time.
settings.register_profile("algm", deadline=None, max_examples=60)
settings.load_profile("algm")
torch.set_num_threads(1)  # tiny models; tests run in parallel


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


DATA = Path(__file__).parent / "data"


def shared() -> Path | None:
    """The folder of golden tensors and labelled images, if ALGM_SHARED names it."""
    place = os.environ.get("ALGM_SHARED")
    return Path(place) if place else None


def golden_files(pattern: str) -> list[Path]:
    """All golden files of ALGM_SHARED, or the few that the tests carry."""
    place = shared()
    return sorted((place / "golden" if place else DATA).glob(pattern))


def read_golden(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.fixture(scope="session")
def shared_data() -> Path:
    place = shared()
    if place is None:
        pytest.skip("ALGM_SHARED does not name the folder with CamVid and its head")
    return place / "data"
