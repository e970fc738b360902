"""Pictures, as arrays."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.figure import Figure
from models import build, photo
from PIL import Image
from skimage.data import astronaut
from torch import nn

from algm_patch import apply_algm, visualize
from algm_patch.viz import animate, contact_sheet, panels
from algm_patch.viz import film as films
from algm_patch.viz.figure import draw_panel, draw_tokens, named_images
from algm_patch.viz.paint import NO_CLASS, Canvas, distinct_colours, paint_classes, paint_difference, paint_groups


@pytest.fixture
def model():
    return apply_algm(build("ViT", dynamic_img_size=True), clap_layer=1, gbm_layers=[3], tau=0.5)


@pytest.mark.parametrize("dimensions", [3, 4])
def test_panels_of_a_tensor(model, dimensions):
    image = photo(batch=1) if dimensions == 4 else photo(batch=1)[0]
    shown = panels(model, image)
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
    shown = panels(model, photo(batch=1))
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
    from_array, from_picture = panels(model, array), panels(model, Image.fromarray(array))
    for a, b in zip(from_array.values(), from_picture.values(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(from_array["image"], array)  # at its own resolution
    assert all(panel.shape[:2] == array.shape[:2] for panel in from_array.values())
    for mode in ("L", "RGBA", "CMYK", "I;16", "P"):
        assert panels(model, Image.new(mode, (70, 50)))["image"].shape == (50, 70, 3)


def test_only_what_happened_is_shown(model):
    model.algm.gbm_layers = []
    assert len(panels(model, photo(batch=1))) == 3
    model.algm.clap_layer = None
    assert list(panels(model, photo(batch=1))) == ["image"]


def test_the_models_mode_is_kept(model):
    model.train()
    panels(model, photo(batch=1))
    assert model.training
    assert model.blocks[0].attn.training


def logits(model, images):
    """Of four classes, from the tokens."""
    tokens = model.forward_features(images)[:, 1:, :4]
    return tokens.mT.unflatten(2, [side // 16 for side in images.shape[2:]])


def test_predictions_without_merging_and_with_it(model):
    image, palette = photo(batch=1), np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    settings = model.algm.settings
    shown = panels(model, image, logits, palette)
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
    values = panels(model, photo(batch=1), lambda model, images: logits(model, images)[:, :1])
    assert values["prediction, unpatched"].shape == values["difference"].shape == (96, 80)
    assert values["difference"].max() > 0
    classes = panels(model, photo(batch=1), lambda model, images: logits(model, images).argmax(1))
    assert classes["prediction, merging"].shape == (96, 80, 3)
    model.algm.tau, model.algm.gbm_layers = 2.0, []
    same = panels(model, photo(batch=1), logits)
    assert "where they differ: 0.0% of the pixels" in same


def test_settings_return_when_a_prediction_fails(model):
    settings = model.algm.settings
    with pytest.raises(ZeroDivisionError):
        panels(model, photo(batch=1), lambda *_: 1 / 0)
    assert model.algm.settings == settings


def test_too_short_a_palette(model):
    with pytest.raises(ValueError, match=r"palette has 1 colours, the prediction holds class [123]"):
        panels(model, photo(batch=1), logits, np.zeros((1, 3), np.uint8))


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


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.uint8])
@pytest.mark.parametrize("given", ["palette", "names", "nothing"])
def test_pixels_without_a_class_are_grey_and_named(model, dtype, given):
    """A model that says -1, or 255 where there are no negative numbers."""

    def predict(model, images):
        classes = logits(model, images).argmax(1)
        classes[:, 0] = -1
        return classes.to(dtype)

    palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    options = {"palette": {"palette": palette.tolist()}, "names": {"classes": list("abcd")}, "nothing": {}}[given]
    shown = panels(model, photo(batch=1), predict, options.get("palette"))
    for title in ("prediction, unpatched", "prediction, merging"):
        assert (shown[title][:16] == NO_CLASS).all()
        assert not (shown[title][16:] == NO_CLASS).all(-1).any()
    (legend,) = visualize(model, photo(batch=1), predict, **options).legends
    assert [text.get_text() for text in legend.get_texts()] == [*options.get("classes", []), "no class"]
    assert [patch.get_facecolor() for patch in legend.get_patches()][-1] == pytest.approx([*(224 / 255,) * 3, 1])


def test_all_pixels_without_a_class(model):
    shown = panels(model, photo(batch=1), lambda model, images: logits(model, images).argmax(1) * 0 - 1)
    assert (shown["prediction, merging"] == NO_CLASS).all()


# -- what predict does with the model


def not_at_all(model, images):
    return torch.rand(1, 4, 6, 5)


def at_first_only():
    answers = []

    def predict(model, images):
        answers[:] = answers or [logits(model, images)]
        return answers[0]

    return predict


def in_windows(model, images):
    return torch.cat([logits(model, window) for window in images.chunk(2, 2)], 2)


def flipped(model, images):
    return (logits(model, images) + logits(model, images.flip(3)).flip(3)) / 2


def in_one_batch(model, images):
    return logits(model, torch.cat([images, images.flip(3)]))[:1]


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (not_at_all, r"predict did not run the ViT \(VisionTransformer\) on the image"),
        (at_first_only(), "predict did not run the ViT"),
        (lambda model, images: build("ViT")(images)[:, :, None, None], "predict did not run the ViT"),
        (in_windows, "predict ran the ViT .* 2 times, on up to 1 images at once"),
        (flipped, "2 times, on up to 1 images"),
        (in_one_batch, "1 times, on up to 2 images"),
        (lambda model, images: model.forward_features(images), r"predict returned tokens \[1, 31, 64\]"),
        (lambda model, images: model(images), r"predict returned \[1, 3\], which is no dense answer"),
    ],
)
def test_a_prediction_that_cannot_be_shown(model, predict, message):
    panels(model, photo(batch=1, seed=5))  # an earlier image, which must not be shown for this one
    settings, hooks = model.algm.settings, len(model.patch_embed.proj._forward_pre_hooks)
    for verb in (panels, visualize):
        with pytest.raises(ValueError, match=message):
            verb(photo(batch=1), model, predict)
    assert model.algm.settings == settings
    assert len(model.patch_embed.proj._forward_pre_hooks) == hooks


def test_a_prediction_that_runs_the_model_twice_on_the_image(model):
    def predict(model, images):
        model(images)
        return logits(model, images)

    once, twice = panels(model, photo(batch=1), logits), panels(model, photo(batch=1), predict)
    for a, b in zip(once.items(), twice.items(), strict=True):
        assert a[0] == b[0]
        np.testing.assert_array_equal(a[1], b[1])


class Bypassed(nn.Module):
    def __init__(self, trunk):
        super().__init__()
        self.trunk = trunk

    def forward(self, images):
        return images


@pytest.mark.parametrize("verb", [panels, visualize, lambda image, model: contact_sheet(model, [image]), "animate"])
def test_a_model_that_does_not_run_its_vit(model, tmp_path, verb):
    verb = (lambda image, model: animate(model, [image], tmp_path / "film.gif")) if verb == "animate" else verb
    panels(model, photo(batch=1))
    with pytest.raises(ValueError, match="the forward of Bypassed did not run the ViT"):
        verb(photo(batch=1)[0], Bypassed(model))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_compiled_model(model, fullgraph):
    expected = panels(model, photo(batch=1), logits)
    panels(model, photo(batch=1, seed=5))
    model.compile(backend="eager", fullgraph=fullgraph)
    if not fullgraph or hasattr(torch.compiler, "set_stance"):  # torch before 2.6 makes no whole graph of a merge
        with torch.no_grad():
            model(photo(batch=1, seed=5))
    shown = panels(model, photo(batch=1), logits)
    assert list(shown) == list(expected)
    for title, panel in shown.items():
        np.testing.assert_array_equal(panel, expected[title])


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
    figure = visualize(model, photo(batch=1), logits, classes=["sky", "road", "tree", "car"])
    assert isinstance(figure, Figure)
    drawn = [axis for axis in figure.axes if axis.get_title()]
    shown = list(panels(model, photo(batch=1), logits))
    assert [axis.get_title() for axis in drawn] == [*shown, "tokens after each layer"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["sky", "road", "tree", "car"]
    heights = [bar.get_height() for bar in drawn[-1].patches]
    assert heights == [31] * 5 + model.algm.tokens_per_layer


@pytest.mark.parametrize("channel", [False, True])
def test_the_figure_of_values(model, channel):
    figure = visualize(model, photo(batch=1), lambda model, images: logits(model, images).mean(1, keepdim=channel))
    titles = [axis.get_title() for axis in figure.axes]
    assert {"prediction, unpatched", "prediction, merging", "difference"} <= {*titles}
    assert not figure.legends


def test_panels_on_axes_of_ones_own(model):
    axes = Figure().subplots(1, 2)
    shown = panels(model, photo(batch=1))
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


def titles(figure):
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def test_a_contact_sheet_of_a_folder(model, folder):
    figure = contact_sheet(model, folder)
    names = [title.split("\n") for title in titles(figure)]
    assert [name for name, _ in names] == ["a.jpg", "b.png"]
    assert names[1][1] == f"{model.algm.tokens_per_layer[-1] - 1} of 30 tokens"
    assert len(titles(contact_sheet(model, [astronaut(), folder / "a.jpg"]))) == 2
    model.algm.clap_layer, model.algm.gbm_layers = None, []
    assert titles(contact_sheet(model, [astronaut()])) == ["1\nnothing merged"]


def test_a_contact_sheet_draws_every_image(model, folder):
    """Also those of one name and one number of tokens."""
    (folder / "other").mkdir()
    turned = Image.open(folder / "a.jpg").rotate(180)
    turned.save(folder / "other" / "a.jpg")
    model.algm.clap_layer, model.algm.gbm_layers = None, []
    figure = contact_sheet(model, [folder / "a.jpg", folder / "other" / "a.jpg", folder / "a.jpg"])
    assert titles(figure) == 3 * ["a.jpg\nnothing merged"]
    first, second, third = (axis.images[0].get_array() for axis in figure.axes[:3])
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, third)


@pytest.mark.parametrize("names", [["1.png", "2.png", "10.png"], ["f9", "F10"], ["a2b10", "a10b1"], ["07", "7", "8"]])
def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path, names):
    for name in reversed(names):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name.removesuffix('.png')}.png")
    assert [name.removesuffix(".png") for name, _ in named_images(tmp_path)] == [
        name.removesuffix(".png") for name in names
    ]


@pytest.fixture
def narrow(monkeypatch):
    """Films of 96 pixels, which take less time."""
    monkeypatch.setattr(films, "WIDTH", 96)


NOTHING = {
    "thresholds above all": {"tau": 2.0, "gbm_layers": []},
    "thresholds that no window reaches": {"tau": 1.0, "gbm_layers": []},
    "no stages": {"clap_layer": None, "gbm_layers": []},
    "no windows": {"window": (7, 7), "gbm_layers": []},
    "no windows, then GBM": {"window": (7, 7), "gbm_layers": [3], "gbm_tau": 0.0},
}


@pytest.mark.parametrize("settings", NOTHING.values(), ids=NOTHING)
def test_every_picture_of_an_image_in_which_nothing_merges(folder, narrow, settings):
    model = apply_algm(build("ViT", dynamic_img_size=True), settings=settings)
    assert animate(model, folder, folder / "film.gif").exists()
    told = [title.split("\n")[1] for title in titles(contact_sheet(model, folder))]
    assert len(told) == 2
    assert (told == 2 * ["nothing merged"]) == (settings["gbm_layers"] == [])
    assert titles(visualize(model, Image.open(folder / "a.jpg")))[0] == "image"


def frames_of(path):
    with Image.open(path) as film:
        for frame in range(film.n_frames):
            film.seek(frame)
            yield np.array(film.convert("RGB"))


@pytest.mark.parametrize("merging", list(itertools.product([True, False], repeat=3)), ids=str)
def test_frames_in_which_something_merges_and_frames_in_which_nothing_does(model, tmp_path, narrow, merging):
    """One image is flat, so that all of it merges; of the other no window is as similar."""
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
        assert (high, wide) == (58, 96)
        seen = np.array(Image.fromarray(image).resize((wide // 2, high)))
        assert np.abs(frame[:, : wide // 2].astype(int).mean((0, 1)) - seen.mean((0, 1))).max() < 8


def test_a_film_of_one_frame(model, tmp_path, narrow):
    assert len(list(frames_of(animate(model, [astronaut()], tmp_path / "film.gif")))) == 1


def test_frames_of_other_sizes_keep_their_proportions(model, tmp_path, narrow):
    """Twice as high as the first: black margins take half of the film."""
    wide, high = np.full((96, 80, 3), 200, np.uint8), np.full((192, 80, 3), 190, np.uint8)
    first, second = frames_of(animate(model, [wide, high], tmp_path / "film.gif"))
    assert (first > 0).all()
    assert (second == 0).all(-1).mean() == pytest.approx(0.5, abs=0.02)


def test_a_film_of_a_folder(model, folder):
    path = animate(model, folder, folder / "film.gif", fps=5)
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
        visualize(model, image)


def test_an_unpatched_model():
    with pytest.raises(ValueError, match="not patched"):
        visualize(photo(batch=1), build("ViT"))


def test_a_picture_is_brought_to_the_models_own_size():
    model = apply_algm(build("ViT", grid=(4, 7)))
    panels(model, astronaut())
    assert model.algm._past().grid == (4, 7)


def test_tokens_of_a_padded_image_are_drawn_where_they_are():
    model = apply_algm(build("ViT", dynamic_img_size=True, dynamic_img_pad=True), gbm_layers=[], tau=-1.0)
    similarity = panels(model, torch.randn(3, 90, 70))["similarity in 2×2 windows"]
    assert similarity.shape == (90, 70)
    assert (similarity[:32, :32] == similarity[0, 0]).all()  # a window of 2x2 tokens of 16 pixels
    assert similarity[32, 0] != similarity[0, 0]
    assert np.isnan(similarity[:, 64:]).all()
