"""Batches without images."""

from typing import Any

import pytest

from algm_patch import apply_algm, calibrate, tune
from tests.support.models import build, photo

SETTINGS: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [3], "tau": 0.5}
EMPTY = {
    "thresholds": SETTINGS,
    "auto": {"gbm_layers": [3]},
    "paper": {"gbm_layers": [3], "tau": "paper", "gbm_tau": "tau"},
    "counts": {"gbm_layers": [3], "merge_to": 0.6},
    "pick": {**SETTINGS, "reduce": "pick", "compare": "key", "place": "after_mlp"},
}


@pytest.mark.parametrize("settings", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("family", ["ViT", "average pooling", "relative positions"])
def test_an_empty_batch(family, mode, settings):
    model = getattr(build(family), mode)()
    image = photo(family)[:0].requires_grad_()
    expected = model(image)
    apply_algm(model, **settings)
    found = model(image)
    assert found.shape == expected.shape
    found.sum().backward()
    assert model.algm.tokens_per_layer == [model.algm.token_map.labels.shape[1]] * 5
    assert model.algm.token_map.sizes.shape[0] == 0
    assert "batch 0" in str(model.algm)
    assert "batch 0" in model.algm._repr_html_()


def test_empty_batches_are_passed_over_by_calibrate_and_tune():
    model = apply_algm(build("ViT"), gbm_layers=[3])
    expected = calibrate(model, photo())
    assert calibrate(model, [photo()[:0], photo(), photo()[:0]]) == expected
    with pytest.raises(ValueError, match="calibrate got no images"):
        calibrate(model, photo()[:0])
    with pytest.raises(ValueError, match="tune got no images"):
        tune(model, photo()[:0])
