"""A patched model, a folder of images, and films that take less time."""

import pytest
from PIL import Image

from algm_patch import apply_algm
from algm_patch.viz import film as films
from tests.support.models import build


@pytest.fixture
def model():
    return apply_algm(build("ViT", dynamic_img_size=True), clap_layer=1, gbm_layers=[3], tau=0.5)


@pytest.fixture
def folder(tmp_path):
    from skimage.data import astronaut  # which the extra "dev" does not bring

    for name in ("b.png", "a.jpg"):
        Image.fromarray(astronaut()[:96, : 80 if name == "a.jpg" else 160]).save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    return tmp_path


@pytest.fixture
def narrow(monkeypatch):
    """Make films 96 pixels wide, which takes less time."""
    monkeypatch.setattr(films, "WIDTH", 96)
