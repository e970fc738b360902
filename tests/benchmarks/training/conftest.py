"""A data set that a tiny ViT learns, and the arguments of runs on it."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.support.label_images import NAME, arguments, make_split


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_split(root / "train", 8, seed=0)
    make_split(root / "val", 3, seed=1)
    return root


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model(NAME, num_classes=0).state_dict(), path)
    return path


@pytest.fixture
def command(data, weights, tmp_path):
    return lambda *more, out="out", epochs=2: arguments(data, weights, tmp_path / out, *more, epochs=epochs)


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    from accelerate.state import AcceleratorState  # which the extra "dev" does not bring

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
