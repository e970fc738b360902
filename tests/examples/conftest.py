"""Share the app's model and a photograph between its tests; what they need is imported when it is asked for."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def model():
    import dinov2_saliency

    return dinov2_saliency.load()


@pytest.fixture
def small_and_once(monkeypatch):
    """Run at 252 pixels a side and time one round: the page does the same, in less time."""
    monkeypatch.setattr("pictures.SIDE", 252)
    monkeypatch.setattr("runs.ROUNDS", 1)


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    from PIL import Image
    from skimage.data import astronaut

    path = tmp_path_factory.mktemp("photographs") / "astronaut.png"
    Image.fromarray(astronaut()).save(path)
    return str(path)
