"""Data sets and weights of tiny models. Libraries that only the extra "test" brings are imported when they are used."""

import pytest


@pytest.fixture
def folder(tmp_path):
    from tests.support.tiny_segmentation import make_folder

    return make_folder(tmp_path / "set")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from tests.support.tiny_training import make_data

    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    from tests.support.tiny_training import save_weights

    return save_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def command(data, weights, tmp_path):
    from tests.support.tiny_training import arguments

    return lambda *more, out="out", epochs=2: arguments(data, weights, tmp_path / out, *more, epochs=epochs)


@pytest.fixture
def fresh_accelerate():
    """Let every test have its own state of accelerate, which a process has once."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
