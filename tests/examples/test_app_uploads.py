"""The app's uploads: made smaller, or refused in words (tests/images reads every kind of file)."""

import pytest
import uploads
from PIL import Image


def test_large_images_are_made_smaller(tmp_path):
    Image.new("L", (20_000, 400)).save(tmp_path / "wide.png")
    assert uploads.read(tmp_path / "wide.png").width == uploads.SHOWN


def test_what_cannot_be_used_is_said_without_the_path(tmp_path):
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(uploads.RefusedError, match=r"^The upload is not an image that can be read") as caught:
        uploads.read(tmp_path / "x.png")
    assert str(tmp_path) not in str(caught.value)
