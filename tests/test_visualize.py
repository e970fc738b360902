"""Pictures, as arrays."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from models import build, photo
from PIL import Image
from skimage.data import astronaut
from torch import nn

from algm_patch import animate, apply_algm, contact_sheet, panels, visualize
from algm_patch.drawing import draw_panel, draw_tokens
from algm_patch.pictures import Canvas, distinct_colours, paint_classes, paint_difference, paint_groups


@pytest.fixture
def model():
    return apply_algm(build("ViT", dynamic_img_size=True), clap_layer=1, gbm_layers=[3], tau=0.5)


@pytest.mark.parametrize("dimensions", [3, 4])
def test_panels_of_a_tensor(model, dimensions):
    image = photo(batch=1) if dimensions == 4 else photo(batch=1)[0]
    shown = panels(image, model)
    assert list(shown)[:2] == ["image", "similarity in 2×2 windows"]
    assert [title.split(":")[0] for title in list(shown)[2:]] == ["CLAP in layer 1", "GBM in layer 3"]
    picture, similarity, local, everywhere = shown.values()
    assert picture.shape == local.shape == everywhere.shape == (96, 80, 3)
    assert picture.dtype == local.dtype == np.uint8
    assert similarity.shape == (96, 80)
    assert np.isnan(similarity[:, 64:]).all()  # an odd column is in no window
    assert similarity[0, 0] == pytest.approx(model.algm.window_similarity[0, 0, 0].item())
    assert np.nanmax(similarity) <= 1.0001


def test_groups_are_the_models_in_their_mean_colours(model):
    with torch.no_grad():
        model.eval()(photo(batch=1))
    labels = model.algm.token_map.labels
    shown = panels(photo(batch=1), model)
    assert torch.equal(model.algm.token_map.labels, labels)
    picture, painted = shown["image"], list(shown.values())[-1]
    labels = model.algm.token_map.labels[0, 1:].view(6, 5).numpy().repeat(16, 0).repeat(16, 1)
    assert f"{len(np.unique(labels))} of 30 tokens" in list(shown)[-1]
    flat = np.zeros(picture.shape)
    for group in np.unique(labels):
        flat[labels == group] = picture[labels == group].mean(0)
    merged = model.algm.token_map.sizes[0].numpy()[labels] > 1
    line = np.zeros(labels.shape, bool)  # between two groups, one of them of more than one token
    line[1:] |= (labels[1:] != labels[:-1]) & (merged[1:] | merged[:-1])
    line[:, 1:] |= (labels[:, 1:] != labels[:, :-1]) & (merged[:, 1:] | merged[:, :-1])
    assert line.any()
    assert np.abs(painted[~line] - flat[~line]).max() <= 1
    assert np.abs(painted[line] - flat[line]).max(-1).min() > 20


def test_panels_of_pictures(model):
    array = astronaut()
    from_array, from_picture = panels(array, model), panels(Image.fromarray(array), model)
    for a, b in zip(from_array.values(), from_picture.values(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(from_array["image"], array)  # at its own resolution
    assert all(panel.shape[:2] == array.shape[:2] for panel in from_array.values())
    for mode in ("L", "RGBA", "CMYK", "I;16", "P"):
        assert panels(Image.new(mode, (70, 50)), model)["image"].shape == (50, 70, 3)


def test_only_what_happened_is_shown(model):
    model.algm.gbm_layers = []
    assert len(panels(photo(batch=1), model)) == 3
    model.algm.clap_layer = None
    assert list(panels(photo(batch=1), model)) == ["image"]


def test_the_models_mode_is_kept(model):
    model.train()
    panels(photo(batch=1), model)
    assert model.training
    assert model.blocks[0].attn.training


def logits(model, images):
    """Of four classes, from the tokens."""
    tokens = model.forward_features(images)[:, 1:, :4]
    return tokens.mT.unflatten(2, [side // 16 for side in images.shape[2:]])


def test_predictions_without_merging_and_with_it(model):
    image, palette = photo(batch=1), np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    settings = model.algm.settings
    shown = panels(image, model, logits, palette)
    assert model.algm.settings == settings
    title, difference = list(shown.items())[-1]
    before, after = shown["prediction, unpatched"], shown["prediction, merging"]
    with torch.no_grad():
        expected = logits(build("ViT", dynamic_img_size=True).eval(), image)
    expected = nn.functional.interpolate(expected, (96, 80), mode="bilinear").argmax(1)[0]
    np.testing.assert_array_equal(before, palette[expected])
    other = (before != after).any(-1)
    assert 0 < other.mean() < 1
    assert title == f"where they differ: {other.mean():.1%} of the pixels"
    assert (difference[other] == (213, 94, 0)).all()
    assert (difference[~other].max(-1) == difference[~other].min(-1)).all()


def test_predictions_of_values_and_of_classes(model):
    values = panels(photo(batch=1), model, lambda model, images: logits(model, images)[:, :1])
    assert values["prediction, unpatched"].shape == values["difference"].shape == (96, 80)
    assert values["difference"].max() > 0
    classes = panels(photo(batch=1), model, lambda model, images: logits(model, images).argmax(1))
    assert classes["prediction, merging"].shape == (96, 80, 3)
    model.algm.tau, model.algm.gbm_layers = 2.0, []
    same = panels(photo(batch=1), model, logits)
    assert "where they differ: 0.0% of the pixels" in same


def test_settings_return_when_a_prediction_fails(model):
    settings = model.algm.settings
    with pytest.raises(ZeroDivisionError):
        panels(photo(batch=1), model, lambda *_: 1 / 0)
    assert model.algm.settings == settings


def test_too_short_a_palette(model):
    with pytest.raises(ValueError, match=r"palette has 1 colours, the prediction holds class [123]"):
        panels(photo(batch=1), model, logits, np.zeros((1, 3), np.uint8))


@pytest.mark.parametrize("size", [(96, 80), (50, 333), (1000, 7)])
def test_tokens_are_spread_over_any_resolution(size):
    """Each token's share of the picture is its share of the input, to a pixel."""
    tokens = np.arange(30).reshape(6, 5)
    spread = Canvas(size, (96, 80), (16, 16)).spread(tokens)
    assert spread.shape == size
    assert (np.diff(spread[:, 0]) >= 0).all()
    for pixels, count, line in zip(size, (6, 5), (spread[:, 0] // 5, spread[0] % 5), strict=True):
        assert np.abs(np.bincount(line, minlength=count) - pixels / count).max() <= 1


def test_a_large_picture_is_outlined_so_that_it_is_seen():
    groups = np.repeat([[0, 1]], 2, 0)
    narrow, wide = (
        (paint_groups(np.full((side, side, 3), 200, np.uint8), groups, Canvas((side, side), (2, 2), (1, 1))) < 200)
        for side in (400, 2000)
    )
    assert narrow[0].any(-1).sum() == 1
    assert wide[0].any(-1).sum() == 4


def test_painting_classes():
    classes = np.array([[0, 1], [2, 2]])
    assert paint_classes(classes, distinct_colours(3)).tolist()[1] == 2 * [distinct_colours(3)[2].tolist()]
    grey = paint_difference(np.zeros((2, 2, 3), np.uint8), classes, classes)
    assert (grey == 128).all()


def test_the_figure(model):
    figure = visualize(photo(batch=1), model, logits, classes=["sky", "road", "tree", "car"])
    assert isinstance(figure, Figure)
    drawn = [axis for axis in figure.axes if axis.get_title()]
    shown = list(panels(photo(batch=1), model, logits))
    assert [axis.get_title() for axis in drawn] == [*shown, "tokens after each layer"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["sky", "road", "tree", "car"]
    heights = [bar.get_height() for bar in drawn[-1].patches]
    assert heights == [31] * 5 + model.algm.tokens_per_layer


def test_panels_on_axes_of_ones_own(model):
    axes = Figure().subplots(1, 2)
    shown = panels(photo(batch=1), model)
    draw_panel(axes[0], shown["image"], "mine")
    draw_tokens(axes[1], model.algm)
    assert axes[0].get_title() == "mine"
    np.testing.assert_array_equal(axes[0].images[0].get_array(), shown["image"])


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.jpg"):
        Image.fromarray(astronaut()[:96, : 80 if name == "a.jpg" else 160]).save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    return tmp_path


def test_a_contact_sheet_of_a_folder(model, folder):
    figure = contact_sheet(folder, model)
    titles = [axis.get_title().split("\n") for axis in figure.axes if axis.get_title()]
    assert [name for name, _ in titles] == ["a.jpg", "b.png"]
    assert titles[1][1] == f"{model.algm.tokens_per_layer[-1] - 1} of 30 tokens"
    assert len([axis for axis in contact_sheet([astronaut(), folder / "a.jpg"], model).axes if axis.get_title()]) == 2
    model.algm.clap_layer, model.algm.gbm_layers = None, []
    assert contact_sheet([astronaut()], model).axes[0].get_title() == "1\nnothing merged"


def test_a_film_of_a_folder(model, folder):
    path = animate(folder, model, folder / "film.gif", fps=5)
    with Image.open(path) as film:
        assert film.n_frames == 2
        assert film.size[0] == 960
        assert film.info["duration"] == 200
    assert {found.name for found in folder.iterdir()} == {"a.jpg", "b.png", "notes.txt", "film.gif"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, folder: contact_sheet([], model), "no images"),
        (lambda model, folder: animate([], model, folder / "film.gif"), "no frames"),
        (lambda model, folder: animate(folder, model, folder / "film.avi"), r"path ends in \.gif; got film\.avi"),
        (lambda model, folder: animate(folder, model, folder / "film.gif", fps=60), "at most 50, got 60"),
        (lambda model, folder: animate([folder / "notes.txt"], model, folder / "film.gif"), "notes.txt"),
    ],
)
def test_what_cannot_be_shown_leaves_no_file(model, folder, call, message):
    with pytest.raises((ValueError, OSError), match=message):
        call(model, folder)
    assert not any(folder.glob("film*"))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (photo(batch=2), ValueError, r"one image, .*got \[2, 3, 96, 80\]"),
        (torch.randn(96, 80), ValueError, r"got \[96, 80\]"),
        ("a.png", TypeError, "got <class 'str'>"),
    ],
)
def test_errors(model, image, error, message):
    with pytest.raises(error, match=message):
        visualize(image, model)


def test_an_unpatched_model():
    with pytest.raises(ValueError, match="not patched"):
        visualize(photo(batch=1), build("ViT"))


def test_a_picture_is_brought_to_the_models_own_size():
    model = apply_algm(build("ViT", grid=(4, 7)))
    panels(astronaut(), model)
    assert model.algm._past().grid == (4, 7)


def test_tokens_of_a_padded_image_are_drawn_where_they_are():
    model = apply_algm(build("ViT", dynamic_img_size=True, dynamic_img_pad=True), gbm_layers=[], tau=-1.0)
    similarity = panels(torch.randn(3, 90, 70), model)["similarity in 2×2 windows"]
    assert similarity.shape == (90, 70)
    assert (similarity[:32, :32] == similarity[0, 0]).all()  # a window of 2x2 tokens of 16 pixels
    assert similarity[32, 0] != similarity[0, 0]
    assert np.isnan(similarity[:, 64:]).all()
