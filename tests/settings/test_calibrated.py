"""A calibrated threshold is saved and loaded, and holds for the settings that it was measured with."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import save_file

from algm_patch import Settings, apply_algm, calibrate
from tests.support.models import build, photo


@pytest.fixture
def model():
    return build("ViT")


def test_what_is_calibrated_is_what_runs_from_files_and_checkpoints(model, tmp_path):
    apply_algm(model, gbm_layers=[3], gbm_tau="tau")
    assert model.algm.calibrated_tau is None
    value = calibrate(model, photo(batch=4, seed=7))
    assert model.algm.calibrated_tau == value
    with torch.no_grad():
        expected = model(photo())
    model.algm.settings.save(tmp_path / "s.json")
    save_file(model.state_dict(), tmp_path / "m.safetensors", metadata=model.algm.settings.metadata())
    for name in ("s.json", "m.safetensors"):
        settings = Settings.load(tmp_path / name)
        assert settings == model.algm.settings
        other = apply_algm(build("ViT"), settings=settings)
        assert other.algm.calibrated_tau == value
        assert f"calibrated: {value:.4f}" in repr(other.algm)
        with torch.no_grad():
            assert torch.equal(other(photo()), expected)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.algm.calibrated_tau == value
    assert apply_algm(model, gbm_layers=[3]).algm.calibrated_tau is None


def test_a_calibrated_threshold_does_not_follow_settings_it_was_not_measured_with(model):
    apply_algm(model, gbm_layers=[3])
    calibrate(model, photo(batch=4, seed=7))
    for change in ({"clap_layer": 2}, {"window": (3, 2)}, {"tau": "paper"}, {"tau": 0.5}, {"place": "after_mlp"}):
        assert apply_algm(build("ViT"), **{**model.algm.settings, **change}).algm.calibrated_tau is None
