"""Films: written whole or not at all."""

import itertools
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from algm_patch.viz import animate, contact_sheet


def frames_of(path):
    film: Any
    with Image.open(path) as film:
        for frame in range(film.n_frames):
            film.seek(frame)
            yield np.array(film.convert("RGB"))


@pytest.mark.parametrize("merging", list(itertools.product([True, False], repeat=3)), ids=str)
def test_frames_in_which_something_merges_and_frames_in_which_nothing_does(model, tmp_path, narrow, merging):
    """One image is flat, so all of it merges. In the other no window is similar enough."""
    model.algm.gbm_layers, model.algm.tau = [], 0.999
    flat, noise = np.full((96, 80, 3), 90, np.uint8), np.random.default_rng(0).integers(0, 256, (96, 80, 3), np.uint8)
    # One pixel of its own for each frame, or the GIF holds equal frames once.
    images = [(flat if merges else noise).copy() for merges in merging]
    for number, image in enumerate(images):
        image[:, : 20 * number] //= 2
    found = list(frames_of(animate(model, images, tmp_path / "film.gif")))
    assert len(found) == 3
    for frame, image in zip(found, images, strict=True):
        high, wide, _ = frame.shape
        left = frame[high // 3 : high // 2, wide // 8 : wide * 3 // 8].astype(int).mean()
        assert abs(left - shown_there(image).mean()) < 8


def shown_there(image):
    """Return the part of a frame that is in the middle of a film's left half."""
    high, wide = image.shape[:2]
    return image[high // 5 : high // 2, wide // 4 : wide * 3 // 4]


def test_a_film_of_one_frame(model, tmp_path, narrow):
    assert len(list(frames_of(animate(model, [astronaut()], tmp_path / "film.gif")))) == 1


def test_frames_of_other_sizes_keep_their_proportions(model, tmp_path, narrow):
    """The second frame is twice as high as the first, so it is half as wide, between white margins."""
    wide, high = np.full((96, 80, 3), 100, np.uint8), np.full((192, 80, 3), 90, np.uint8)
    path = animate(model, [wide, high], tmp_path / "film.gif")
    first, second = (row_of(frame) for frame in frames_of(path))
    assert first.sum() == pytest.approx(2 * second.sum(), abs=3)


def row_of(frame):
    """Return which pixels of the left half show the image, in a row through the middle of the panel."""
    high, wide, _ = frame.shape
    return abs(frame[high * 2 // 5, : wide // 2].astype(int) - 95).max(-1) < 15


def test_a_film_of_a_folder(model, folder):
    path = animate(model, folder, folder / "film.gif", fps=5)
    film: Any
    with Image.open(path) as film:
        assert film.n_frames == 2
        assert film.size[0] == 960
        assert film.info["duration"] == 200
    assert {found.name for found in folder.iterdir()} == {"a.jpg", "b.png", "notes.txt", "film.gif"}


def fails_after(count, error):
    def frames():
        for number in range(count):
            yield astronaut()[number:]
        raise error

    return frames()


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no such frame")])
@pytest.mark.parametrize("there", [False, True], ids=["new", "over another"])
def test_an_interrupted_film_leaves_what_was_there(model, tmp_path, narrow, count, error, there):
    if there:
        (tmp_path / "film.gif").write_text("precious")
        (tmp_path / "film.unfinished").write_text("precious too")
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        animate(model, fails_after(count, error), tmp_path / "film.gif")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_a_film_takes_the_place_of_another_and_of_no_other_file(model, tmp_path, narrow):
    (tmp_path / "film.unfinished").write_text("precious")
    for _ in range(2):
        animate(model, [astronaut()], tmp_path / "film.gif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.gif", "film.unfinished"]
    assert (tmp_path / "film.unfinished").read_text() == "precious"


def test_a_folder_that_is_not_there_is_named(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"film\.gif cannot be written: .*nowhere is not a folder"):
        animate(model, [astronaut()], tmp_path / "nowhere" / "film.gif")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, folder: contact_sheet(model, []), "no images"),
        (lambda model, folder: animate(model, [], folder / "film.gif"), "no frames"),
        (lambda model, folder: animate(model, folder, folder / "film.avi"), r"path ends in \.gif; got film\.avi"),
        (lambda model, folder: animate(model, folder, folder / "film.gif", fps=60), "at most 50, got 60"),
        (lambda model, folder: animate(model, [folder / "notes.txt"], folder / "film.gif"), "notes.txt"),
    ],
)
def test_what_cannot_be_shown_leaves_no_file(model, folder, call, message):
    with pytest.raises((ValueError, OSError), match=message):
        call(model, folder)
    assert not any(folder.glob("film*"))
