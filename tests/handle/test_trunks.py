"""``model.algm`` of a model with several patched ViTs."""

from typing import Any

import pytest
import torch

from algm_patch import apply_algm, calibrate, tune, visualize
from tests.support.models import photo
from tests.support.several import Pair

SETTINGS: dict[str, Any] = {"gbm_layers": [2], "tau": 0.5}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return apply_algm(Pair(), trunks="all", **SETTINGS).requires_grad_(False)


def test_settings_are_set_in_all(model):
    model.algm.tau = 0.9
    assert (model.fine.algm.tau, model.coarse.algm.tau, model.algm.tau) == (0.9, 0.9, 0.9)
    model.algm.update(gbm_layers=[1, 2], gbm_tau=(0.7, 0.8))
    assert model.coarse.algm.gbm_tau == (0.7, 0.8)
    with model.algm.using(tau=0.3, gbm_tau="adaptive"):
        assert (model.fine.algm.tau, model.coarse.algm.gbm_tau) == (0.3, "adaptive")
    assert model.algm.settings == model.fine.algm.settings
    assert (model.algm.tau, model.algm.gbm_tau) == (0.9, (0.7, 0.8))


@pytest.mark.parametrize(
    "change",
    [
        lambda handle: setattr(handle, "gbm_layers", [4]),
        lambda handle: handle.update(gbm_layers=[4]),
        lambda handle: handle.using(gbm_layers=[4]).__enter__(),
    ],
    ids=["set", "update", "using"],
)
def test_or_in_none(model, change):
    before = model.algm.settings
    with pytest.raises(ValueError, match=r"coarse: gbm_layers names layer 4, but VisionTransformer has 2 blocks"):
        change(model.algm)
    assert model.fine.algm.settings == model.coarse.algm.settings == before


def test_what_is_of_one_is_asked_of_one(model):
    model(photo())
    with pytest.raises(AttributeError, match=r"'fine', 'coarse' has its own tokens_per_layer: model\.algm\['fine'\]"):
        _ = model.algm.tokens_per_layer
    assert len(model.algm["fine"].tokens_per_layer) == 4
    model.algm["fine"].tau = 0.9
    with pytest.raises(
        AttributeError, match=r"differ in tau: \{'fine': 0\.9, 'coarse': 0\.5\}\. .*model\.algm\['fine'\]"
    ):
        _ = model.algm.tau
    with pytest.raises(AttributeError, match=r"no attribute 'token_per_layer'"):
        _ = model.algm.token_per_layer
    with pytest.raises(AttributeError, match=r"no setting 'taus'; there are clap_layer, gbm_layers"):
        model.algm.taus = 0.9
    with pytest.raises(KeyError, match=r"'left' is none of the patched ViTs: 'fine', 'coarse'"):
        model.algm["left"]


def test_it_prints_each(model):
    assert str(model.algm).splitlines() == [
        "ALGM on 2 ViTs of Pair",
        *[line for path, depth in (("fine", 4), ("coarse", 2)) for line in printed(path, depth)],
    ]
    model(photo())
    assert str(model.algm).count("tokens after each layer") == 2
    card = model.algm._repr_html_()
    assert card.count("last forward pass") == 2
    assert "<div>fine</div>" in card
    assert "tau" in dir(model.algm)


def printed(path, depth):
    return [
        f"  {path}: VisionTransformer, {depth} blocks",
        "    CLAP  layer 1, window (2, 2), tau 0.5",
        "    GBM   layer 2, tau adaptive",
        "    proportional attention on",
        "    no forward pass yet",
    ]


@pytest.mark.parametrize(
    "verb",
    [
        lambda model: calibrate(model, photo()),
        lambda model: tune(model, photo(), budget="1s"),
        lambda model: visualize(model, photo()[0]),
    ],
    ids=["calibrate", "tune", "visualize"],
)
def test_what_takes_one_vit_says_so(model, verb):
    with pytest.raises(
        ValueError, match=r"Pair holds 2 patched ViTs \('fine', 'coarse'\), and this takes one\. Pass the"
    ):
        verb(model)
    assert model.algm.tau == 0.5


def test_one_that_is_patched_is_measured_on_the_whole_model():
    torch.manual_seed(0)
    model = apply_algm(Pair(), trunks="coarse", **SETTINGS).requires_grad_(False)
    assert calibrate(model, photo()) == model.coarse.algm.calibrated_tau
    found = tune(
        model, photo(batch=8), keep=0.1, budget="60s", predict=lambda model, image: model(image)[..., None, None]
    )
    assert model.algm is model.coarse.algm
    assert model.algm.settings == found
    assert not hasattr(model.fine, "algm")


def test_several_that_none_is_named_of_are_not_tuned():
    torch.manual_seed(0)
    model = Pair()
    with pytest.raises(ValueError, match=r"Pair holds 2 ViTs: .* Name those to patch"):
        tune(model, photo(batch=8), keep=0.1, budget="1s")
    assert not hasattr(model, "algm")
