"""Settings of a patched model change as attributes."""

import pytest
import torch

from algm_patch import apply_algm
from tests.support.models import build, photo


@torch.no_grad()
def test_settings_change_without_patching_again():
    model, image = build("ViT"), photo()
    expected = model(image)
    apply_algm(model, tau=0.5)
    few = model(image)
    model.algm.tau = 0.99
    assert not torch.equal(model(image), few)
    model.algm.clap_layer, model.algm.gbm_layers = None, []
    assert torch.equal(model(image), expected)
    model.algm.clap_layer = 3
    model(image)
    assert model.algm.tokens_per_layer[1] == 31
    model.algm.window = (3, 5)
    model.algm.tau = -1
    model(image)
    assert model.algm.tokens_per_layer[-1] == 3
    assert (model.algm.tau, model.algm.gbm_layers, model.algm.window) == (-1.0, (), (3, 5))


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("tau", -3, ValueError),
        ("gbm_layers", [6], ValueError),
        ("clap_layer", 6, ValueError),
        ("clap_layer", 5, ValueError),  # behind GBM
        ("tua", 0.9, AttributeError),
    ],
)
def test_a_wrong_setting_is_refused_and_the_old_one_kept(name, value, error):
    model = apply_algm(build("ViT"), gbm_layers=[4])
    before = repr(model.algm)
    with pytest.raises(error):
        setattr(model.algm, name, value)
    assert repr(model.algm) == before


def test_an_unknown_name_is_answered_with_the_known_ones():
    model = apply_algm(build("ViT"))
    with pytest.raises(AttributeError, match=r"no attribute 'taus'.*clap_layer.*window"):
        _ = model.algm.taus
