"""Every entry point reads every kind of file alike, and names those that it cannot read."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import pytest
import uploads
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from algm_patch import apply_algm, calibrate, tune
from algm_patch.cli import commands
from algm_patch.images.named import named_images
from algm_patch.images.reading import ImageError, in_8_bits, open_image
from algm_patch.viz import contact_sheet
from benchmarks.common.images import pictures as pictures_of
from benchmarks.evaluation.dataset import read_image
from tests.support.hostile_images import BROKEN, COLOURS, READABLE, saved
from tests.support.models import build


class Seen(Exception):  # noqa: N818, not an error
    """Bring what an entry point made of a file out of it."""


def bring_out(*given_: Any, **_: Any) -> Any:
    raise Seen(given_[-1])


def seen_by(call: Callable[[], Any]) -> Any:
    with pytest.raises(Seen) as caught:
        call()
    return np.asarray(caught.value.args[0])


def model() -> Any:
    return build("ViT", dynamic_img_size=True)


def by_show(path: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "patched", lambda options: None)
        patch.setattr(commands, "visualize", bring_out)
        return seen_by(lambda: commands.show(argparse.Namespace(image=path)))


def by_bench(path: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "load", lambda options: model())
        patch.setattr(commands, "patched", lambda options, model: apply_algm(model))
        patch.setattr(commands, "prepare", lambda model, image, trunk: bring_out(image))
        return seen_by(lambda: commands.bench(argparse.Namespace(image=path, batch=1)))


def by_calibrate(path: Path) -> Any:
    patched = apply_algm(model(), gbm_layers=[])
    patched.register_forward_pre_hook(bring_out)
    return seen_by(lambda: calibrate(patched, [path]))


def by_contact_sheet(path: Path) -> Any:
    return contact_sheet(apply_algm(model(), gbm_layers=[]), [path]).axes[0].images[0].get_array()


# By name: what each entry point makes of a file.
ENTRIES: dict[str, Callable[[Path], Any]] = {
    "quickstart": lambda path: np.asarray(pictures.open_image(path)),
    "the app": lambda path: np.asarray(uploads.read(path)),
    "show": by_show,
    "bench": by_bench,
    "tune, a folder": lambda path: seen_by(lambda: tune(model(), path.parent, predict=bring_out)),
    "tune, paths": lambda path: seen_by(lambda: tune(model(), [path], predict=bring_out)),
    "tune, images": lambda path: seen_by(lambda: tune(model(), [open_image(path)], predict=bring_out)),
    "calibrate": by_calibrate,
    "contact_sheet": by_contact_sheet,
    "benchmarks": lambda path: np.asarray(pictures_of(path.parent)["x"]),
    "labelled images": lambda path: np.asarray(read_image(path)),
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_every_kind_of_file_is_the_picture_in_it(tmp_path, entry):
    """An entry point sees every kind as it sees a plain PNG of the picture."""
    plain = {}
    for number, (kind, (write, picture)) in enumerate(READABLE.items()):
        for folder in ("file", "plain"):
            (tmp_path / folder / str(number)).mkdir(parents=True)
        key = picture.tobytes()
        if key not in plain:
            plain[key] = entry(saved(picture, tmp_path / "plain" / str(number) / "x.png"))
        found = entry(write(tmp_path / "file" / str(number)))
        assert np.array_equal(found, plain[key]), kind


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_named(tmp_path, kind):
    write, message = BROKEN[kind]
    path = write(tmp_path)
    for name in ("quickstart", "show", "tune, paths", "calibrate", "contact_sheet"):
        with pytest.raises((ImageError, SystemExit)) as caught:
            ENTRIES[name](path)
        assert str(path) in str(caught.value)
        assert message in str(caught.value)
    with pytest.raises(uploads.RefusedError, match=f"The upload .*{message.removeprefix('is ')}"):
        uploads.read(path)


@pytest.mark.parametrize("kind", READABLE)
def test_the_picture_itself(tmp_path, kind):
    write, picture = READABLE[kind]
    assert np.array_equal(np.asarray(open_image(write(tmp_path))), picture)


@given(arrays(np.float64, (4, 4), elements=st.floats(allow_nan=True) | st.integers(0, 70_000).map(float)))
def test_values_of_any_range_keep_their_order(values):
    found = in_8_bits(values)
    known = np.isfinite(values)
    order = np.argsort(values[known], kind="stable")
    assert (np.diff(found[known][order].astype(int)) >= 0).all()
    assert (found[~known] == 0).all()


def test_a_broken_image_of_a_folder_is_left_out_and_named(tmp_path):
    for name in ("1.png", "3.png"):
        saved(COLOURS, tmp_path / name)
    (tmp_path / "2.png").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    with pytest.warns(UserWarning, match=r"2\.png is not an image that can be read.* It is left out") as caught:
        assert [name for name, _ in named_images(tmp_path)] == ["1.png", "3.png"]
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.filterwarnings("ignore:.*is not an image that can be read")
def test_a_folder_of_broken_images_is_an_error(tmp_path):
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_text("no image")
    with pytest.raises(
        ImageError, match=r"holds no image that can be read\. The last of its 2: .*2\.png is not an image"
    ):
        list(named_images(tmp_path))


def test_a_folder_without_images_is_named(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path} holds no images: no file that ends in \.jpg"):
        list(named_images(tmp_path))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(named_images(tmp_path / "nowhere"))


@pytest.mark.parametrize("names", [["1.png", "2.png", "10.png"], ["f9", "F10"], ["a2b10", "a10b1"], ["07", "7", "8"]])
def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path, names):
    for name in reversed(names):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name.removesuffix('.png')}.png")
    assert [name.removesuffix(".png") for name, _ in named_images(tmp_path)] == [
        name.removesuffix(".png") for name in names
    ]
