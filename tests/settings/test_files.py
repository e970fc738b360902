"""Settings in files and checkpoints."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from algm_patch import Settings, apply_algm
from algm_patch.settings.record import Calibrated
from tests.support.models import build
from tests.support.records import settings_on

CALIBRATED = asdict(Calibrated(0.5, "auto", 1, (2, 2), "token", "before_mlp"))


@pytest.fixture
def model():
    return build("ViT")


@pytest.mark.parametrize("tuned", [False, True], ids=["by hand", "tuned"])
def test_a_file_gives_back_the_settings(model, tmp_path, tuned):
    settings = settings_on(model) if tuned else Settings(gbm_layers=[2], tau="paper", window=(1, 2))
    settings.save(tmp_path / "s.json")
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]
    assert Settings.load(tmp_path / "s.json") == settings
    assert apply_algm(model, settings=Settings.load(str(tmp_path / "s.json"))).algm.settings == settings


def test_an_interrupted_save_leaves_what_was_there(model, tmp_path, monkeypatch):
    def half(path, text):
        path.write_bytes(text.encode()[: len(text) // 2])
        raise KeyboardInterrupt

    settings_on(model).save(tmp_path / "s.json")
    before = (tmp_path / "s.json").read_text()
    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(KeyboardInterrupt):
        Settings(tau=0.5).save(tmp_path / "s.json")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("s.json", before)]


def test_settings_are_saved_through_a_link(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "out" / "s.json")
    Settings(tau=0.5).save(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert Settings.load(tmp_path / "out" / "s.json") == Settings(tau=0.5)


def test_a_checkpoint_carries_settings(model, tmp_path):
    settings = settings_on(model)
    save_file(model.state_dict(), tmp_path / "m.safetensors", metadata=settings.metadata())
    assert Settings.load(tmp_path / "m.safetensors") == settings
    model.load_state_dict(load_file(tmp_path / "m.safetensors"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.json", "tau: 0.9", "s.json is not JSON"),
        ("s.json", '{"tau": 0.9}', "s.json holds no settings: no entry 'algm_patch'"),
        ("s.json", "[1]", "holds no settings"),
        ("s.json", '{"algm_patch": {"tau": 0.9, "warp": 1, "alpha": 2}}', "does not know 'alpha', 'warp'"),
        ("s.json", '{"algm_patch": {"record": {"model": "V"}}}', "says nothing of 'blocks'"),
        ("s.json", '{"algm_patch": {"tau": -3}}', "s.json: tau is a cosine"),
        ("s.json", '{"algm_patch": {"clap_layer": "one"}}', "s.json: clap_layer counts blocks"),
        ("s.json", '{"algm_patch": {"record": 3}}', "s.json is damaged: where a Record should be there is 3"),
        ("s.json", '{"algm_patch": {"calibrated": 3}}', "where a Calibrated should be there is 3"),
        ("s.json", '{"algm_patch": {"calibrated": [3]}}', "s.json is damaged: where a Calibrated should be there is 3"),
        (
            "s.json",
            json.dumps({"algm_patch": {"calibrated": [{**CALIBRATED, "value": "x"}]}}),
            "s.json is damaged: calibrated holds a threshold, which is a finite number; got 'x'",
        ),
        ("m.safetensors", "", "m.safetensors is damaged, or no safetensors file"),
        ("m.safetensors", '{"algm_patch": {}}', "m.safetensors is damaged"),
    ],
)
def test_other_files_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        Settings.load(tmp_path / name)


def test_a_checkpoint_without_settings_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="holds no settings"):
        Settings.load(tmp_path / "m.safetensors")
