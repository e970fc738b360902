"""A data set and weights that a tiny ViT learns on, for tests of training."""

import pytest

from tests.support.tiny_training import arguments, make_data, save_weights


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def command(data, weights, tmp_path):
    return lambda *more, out="out", epochs=2: arguments(data, weights, tmp_path / out, *more, epochs=epochs)


@pytest.fixture
def fresh_accelerate():
    """Let every test have its own state of accelerate, which a process has once."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
