"""The app's uploads: every kind of image becomes RGB, or the error says why not."""

from __future__ import annotations

from pathlib import Path

import app
import numpy as np
import pytest
import uploads
from PIL import Image
from skimage.data import astronaut


def saved(picture: Image.Image, path: Path, **options) -> Path:
    picture.save(path, **options)
    return path


HANDLED = {
    "grey": ("L", "x.png"),
    "palette": ("P", "x.gif"),
    "print colours": ("CMYK", "x.jpg"),
    "alpha": ("RGBA", "x.png"),
    "bilevel": ("1", "x.png"),
    "16 bit": ("I;16", "x.png"),
    "float": ("F", "x.tif"),
}


@pytest.mark.parametrize("kind", HANDLED)
def test_uploads_of_every_kind_become_rgb(tmp_path, kind):
    mode, name = HANDLED[kind]
    picture = app.read(saved(Image.new(mode, (80, 60)), tmp_path / name))
    assert (picture.mode, picture.size) == ("RGB", (80, 60))


def test_what_is_seen_is_kept(tmp_path):
    steps = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(40, 0)
    deep = np.asarray(app.read(saved(Image.fromarray(steps), tmp_path / "deep.png")))
    assert (np.diff(deep[0, :, 0].astype(int)) >= 0).all()
    assert (deep[0, 0, 0], deep[0, -1, 0]) == (0, 255)
    clear = app.read(saved(Image.new("RGBA", (40, 40), (255, 0, 0, 0)), tmp_path / "clear.png"))
    assert clear.getpixel((0, 0)) == (255, 255, 255)
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    first = app.read(saved(frames[0], tmp_path / "two.gif", save_all=True, append_images=frames[1:]))
    assert first.getpixel((5, 5)) == (255, 0, 0)
    turned = Image.new("RGB", (80, 40))
    exif = turned.getexif()
    exif[274] = 6
    assert app.read(saved(turned, tmp_path / "turned.jpg", exif=exif)).size == (40, 80)


def test_large_images_are_made_smaller(tmp_path):
    assert app.read(saved(Image.new("L", (20_000, 400)), tmp_path / "wide.png")).width == uploads.SHOWN


REFUSED = {
    "one pixel": (lambda path: saved(Image.new("RGB", (1, 1)), path / "x.png"), "1×1 pixels. It needs at least 32"),
    "very large": (lambda path: saved(Image.new("1", (20_000, 20_000)), path / "x.png"), "At most 64 megapixels"),
    "large": (lambda path: saved(Image.new("1", (9_000, 9_000)), path / "x.png"), "9000×9000 pixels. At most 64"),
    "text": (lambda path: text(path / "x.png", b"no image"), "not an image that can be read"),
    "empty": (lambda path: text(path / "x.jpg", b""), "not an image that can be read"),
    "cut off": (lambda path: cut(path / "x.png"), "not an image that can be read"),
}


def text(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def cut(path: Path) -> Path:
    saved(Image.fromarray(astronaut()), path)
    return text(path, path.read_bytes()[:2000])


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_used_is_said(tmp_path, kind):
    make, message = REFUSED[kind]
    with pytest.raises(app.RefusedError, match=message):
        app.read(make(tmp_path))
