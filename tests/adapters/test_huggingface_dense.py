"""transformers' models for dense prediction: their heads see the full grid."""

import pytest
import torch

from algm_patch import apply_algm, remove_algm
from tests.support.contract import SETTINGS, permute_in_place_of_clap
from tests.support.huggingface_family import PATCH
from tests.support.models_huggingface import photo
from tests.support.models_huggingface_dense import DENSE, make_dense, prediction
from tests.support.training import gradients


@pytest.fixture(params=DENSE)
def dense(request):
    """A dense model and its images."""
    return make_dense(request.param), photo(grid=DENSE[request.param][2])


@torch.no_grad()
def test_dense_models_whose_patches_are_shuffled_inside(dense, monkeypatch):
    model, image = dense
    expected = prediction(model, image)
    permute_in_place_of_clap(monkeypatch)
    apply_algm(model, clap_layer=2, gbm_layers=[])
    torch.testing.assert_close(prediction(model, image), expected, atol=1e-3, rtol=1e-3)
    prefix = model.algm.token_map.labels.shape[1] - image.shape[2] * image.shape[3] // PATCH**2
    assert not torch.equal(
        model.algm.token_map.labels[0, prefix:], torch.arange(len(model.algm.token_map.labels[0]))[prefix:]
    )


@torch.no_grad()
def test_dense_models(dense):
    model, image = dense
    expected = prediction(model, image)
    apply_algm(model, **SETTINGS)
    found = prediction(model, image)
    assert found.shape == expected.shape
    assert not torch.allclose(found, expected, atol=1e-3)
    assert model.algm.tokens_per_layer[0] < image.shape[2] * image.shape[3] // PATCH**2
    model.algm.tau, model.algm.gbm_layers = 2.0, []
    assert torch.equal(prediction(model, image), expected)
    remove_algm(model)
    assert torch.equal(prediction(model, image), expected)


def test_dense_models_train(dense):
    model, image = dense
    model.train()

    expected = gradients(model, prediction(model, image).cos().sum())
    apply_algm(model, **SETTINGS)
    found = gradients(model, prediction(model, image).cos().sum())
    assert model.algm.tokens_per_layer[0] < image.shape[2] * image.shape[3] // PATCH**2
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.isfinite().all(), name
        assert gradient.any() == expected[name].any(), name


@pytest.mark.parametrize("name", [name for name in DENSE if "EoMT" in name])
def test_the_queries_of_eomt_join_the_prefix(name):
    model = apply_algm(make_dense(name), **SETTINGS)
    model(pixel_values=photo(grid=(6, 6)))
    prefix = 7 + model.embeddings.num_prefix_tokens
    assert torch.equal(model.algm.token_map.labels[:, :prefix], torch.arange(prefix).expand(2, -1))
    third, fourth = model.algm.tokens_per_layer[2:4]
    assert fourth == third + 7
