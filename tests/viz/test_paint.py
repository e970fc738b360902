"""Tokens, groups and classes, painted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from algm_patch.viz import panels
from algm_patch.viz.groups import STEPS, paint_groups
from algm_patch.viz.paint import NO_CLASS, Canvas, distinct_colours, paint_classes, paint_difference
from tests.support.models import photo
from tests.support.pictures import logits


@pytest.mark.parametrize(
    ("palette", "found"),
    [
        ([0, 1, 2], r"got \[3\] of int64 from 0 to 2"),
        ([[0.1, 0.2, 1.0]], r"got \[1, 3\] of float64 from 0.1 to 1.0"),
        ([[0, 0, 256]], r"got \[1, 3\] of int64 from 0 to 256"),
        ([[0, -1, 255]], r"got \[1, 3\] of int64 from -1 to 255"),
        ([[0, 0, 0, 255]], r"got \[1, 4\]"),
        (["red"], r"got \[1\] of <U3$"),
    ],
)
def test_what_is_no_palette(model, palette, found):
    with pytest.raises(ValueError, match=f"whole numbers from 0 to 255; {found}"):
        panels(model, photo(batch=1), logits, palette)


@given(
    hnp.arrays(np.int64, (3, 4), elements=st.integers(-300, 300) | st.sampled_from([-1, 0, 255])),
    st.integers(1, 300),
)
def test_every_class_has_its_own_colour_or_none(classes, count):
    palette = np.arange(3 * count).reshape(count, 3) % 199
    none = (classes < 0) | ((classes == 255) if count <= 255 else False)
    if (classes[~none] >= count).any():
        with pytest.raises(ValueError, match=f"palette has {count} colours, the prediction holds class"):
            paint_classes(classes, palette)
        return
    painted = paint_classes(classes, palette)
    for pixel in np.ndindex(classes.shape):
        assert painted[pixel].tolist() == (list(NO_CLASS) if none[pixel] else palette[classes[pixel]].tolist())


@pytest.mark.parametrize("size", [(96, 80), (50, 333), (1000, 7)])
def test_tokens_are_spread_over_any_resolution(size):
    """Each token's share of the picture is its share of the input, to a pixel."""
    tokens = np.arange(30).reshape(6, 5)
    spread = Canvas(size, (96, 80), (16, 16)).spread(tokens)
    assert spread.shape == size
    assert (np.diff(spread[:, 0]) >= 0).all()
    for pixels, count, line in zip(size, (6, 5), (spread[:, 0] // 5, spread[0] % 5), strict=True):
        assert np.abs(np.bincount(line, minlength=count) - pixels / count).max() <= 1


@pytest.mark.parametrize(("side", "tokens", "width"), [(200, 2, 1), (400, 2, 2), (2000, 2, 8), (2000, 200, 2)])
def test_outlines_are_as_wide_as_the_picture_asks_and_the_tokens_allow(side, tokens, width):
    groups = np.repeat([np.arange(tokens)], tokens, 0)
    canvas = Canvas((side, side), (tokens, tokens), (1, 1))
    painted = paint_groups(np.full((side, side, 3), 200, np.uint8), groups, canvas)
    assert (painted[0] == 255).all(-1).sum() == width * (tokens - 1)


@given(hnp.arrays(np.int64, (4, 5), elements=st.integers(0, 6)))
def test_a_group_has_the_colour_of_its_size_wherever_its_members_are(groups):
    """Tokens that stand alone show the picture, up to the outlines of their neighbours."""
    picture = np.full((40, 50, 3), 100, np.uint8)
    painted = paint_groups(picture, groups, Canvas((40, 50), (40, 50), (10, 10)))
    inside = painted[5::10, 5::10]  # the middle of each token
    _, number, counts = np.unique(groups, return_inverse=True, return_counts=True)
    sizes = counts[number].reshape(groups.shape)
    steps = np.searchsorted(STEPS, sizes, "right")
    colours = {step: {tuple(colour) for colour in inside[steps == step].tolist()} for step in np.unique(steps)}
    assert all(len(found) == 1 for found in colours.values())
    assert len({*map(frozenset, colours.values())}) == len(colours)
    assert colours.get(0, {(100, 100, 100)}) == {(100, 100, 100)}


def test_painting_classes():
    classes = np.array([[0, 1], [2, 2]])
    assert paint_classes(classes, distinct_colours(3)).tolist()[1] == 2 * [distinct_colours(3)[2].tolist()]
    grey = paint_difference(np.zeros((2, 2, 3), np.uint8), classes, classes)
    assert (grey == 128).all()
