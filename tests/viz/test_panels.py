"""Panels of the merges, as arrays."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from algm_patch import apply_algm
from algm_patch.viz import panels
from tests.support.models import build, photo
from tests.support.pictures import logits


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


def test_groups_are_the_models_outlined_and_tinted(model):
    shown = panels(model, photo(batch=1))
    picture, painted = shown["image"], list(shown.values())[-1]
    labels = model.algm.token_map.labels[0, 1:].view(6, 5).numpy().repeat(16, 0).repeat(16, 1)
    assert f"{len(np.unique(labels))} of 30 patches" in list(shown)[-1]
    merged = model.algm.token_map.sizes[0].numpy()[labels] > 1
    line = np.zeros(labels.shape, bool)  # between two groups, one of them of more than one token
    line[1:] |= (labels[1:] != labels[:-1]) & (merged[1:] | merged[:-1])
    line[:, 1:] |= (labels[:, 1:] != labels[:, :-1]) & (merged[:, 1:] | merged[:, :-1])
    assert line.any()
    assert (painted[line] == 255).all()
    np.testing.assert_array_equal(painted[~line & ~merged], picture[~line & ~merged])
    for group in np.unique(labels[merged]):
        inside = painted[(labels == group) & ~line]
        assert (inside == inside[0]).all()


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


def test_a_picture_is_brought_to_the_models_own_size():
    model = apply_algm(build("ViT", grid=(4, 7)))
    panels(model, astronaut())
    assert model.algm.last_pass.grid == (4, 7)


def test_tokens_of_a_padded_image_are_drawn_where_they_are():
    model = apply_algm(build("ViT", dynamic_img_size=True, dynamic_img_pad=True), gbm_layers=[], tau=-1.0)
    similarity = panels(model, torch.randn(3, 90, 70))["similarity in 2×2 windows"]
    assert similarity.shape == (90, 70)
    assert (similarity[:32, :32] == similarity[0, 0]).all()  # a window of 2x2 tokens of 16 pixels
    assert similarity[32, 0] != similarity[0, 0]
    assert np.isnan(similarity[:, 64:]).all()
