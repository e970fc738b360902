"""Pictures, as arrays."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from models import build, photo
from PIL import Image
from skimage.data import astronaut

from algm_patch import apply_algm, panels, visualize


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
    assert np.abs(from_array["image"].mean((0, 1)) - array.mean((0, 1))).max() < 20
    assert panels(Image.fromarray(array).convert("L"), model)["image"].shape[2] == 3


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


def test_the_figure(model):
    figure = visualize(photo(batch=1), model)
    assert isinstance(figure, Figure)
    drawn = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in drawn] == list(panels(photo(batch=1), model))


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
    assert panels(astronaut(), model)["image"].shape == (64, 112, 3)


def test_tokens_of_a_padded_image_are_drawn_where_they_are():
    model = apply_algm(build("ViT", dynamic_img_size=True, dynamic_img_pad=True), gbm_layers=[], tau=-1.0)
    similarity = panels(torch.randn(3, 90, 70), model)["similarity in 2×2 windows"]
    assert similarity.shape == (90, 70)
    assert (similarity[:32, :32] == similarity[0, 0]).all()  # a window of 2x2 tokens of 16 pixels
    assert similarity[32, 0] != similarity[0, 0]
    assert np.isnan(similarity[:, 64:]).all()
