"""Settings in files, what they were measured on, presets, and the Pareto front."""

import copy
import json
import pickle
import re
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from models import build, photo
from safetensors.torch import load_file, save_file

from algm_patch import Settings, __version__, apply_algm, calibrate, presets
from algm_patch.settings.record import Calibrated, Record, Trial, front, weight_sample
from algm_patch.viz import pareto

CALIBRATED = asdict(Calibrated(0.5, "auto", 1, (2, 2), "token", "before_mlp"))
TRIALS = (
    Trial(1, 0.9, (2, 4), (0.8, 0.7), "key", kept=0.97, cost=30.5),
    Trial(None, 1.0, (), "adaptive", "token", kept=0.96, cost=31.0),
)


def measured_on(model, /, **changes):
    sample = weight_sample(model.patch_embed.proj)
    known = Record(
        "VisionTransformer", 5, sample, __version__, 8, "agreement", 0.95, 0.97, "GFLOPs", 30.5, 63.4, TRIALS
    )
    return replace(known, **changes)


def settings_on(model, /, **changes):
    trial = TRIALS[0].settings
    return Settings(**trial, record=measured_on(model, **changes))


OTHERS = (("window", (2, 2)), ("proportional_attention", True), ("reduce", "mean"))


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
        ("s.json", '{"algm_patch": {"calibrated": 3}}', "where a list of Calibrated should be there is 3"),
        ("s.json", '{"algm_patch": {"calibrated": [3]}}', "where a Calibrated should be there is 3"),
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "Eva"}, "on Eva with 5 blocks, and this is VisionTransformer with 5"),
        ({"blocks": 12}, "on VisionTransformer with 12 blocks, and this is VisionTransformer with 5"),
        ({"weights": (0.5,) * 8}, "on other weights of VisionTransformer than these"),
        ({"version": "0.0.1"}, f"by algm_patch 0.0.1, and this is {__version__}"),
    ],
)
def test_another_model_warns(model, changes, message):
    with pytest.warns(UserWarning, match=re.escape(message)):
        apply_algm(model, **settings_on(model, **changes))


def test_the_same_model_does_not_warn(model):
    settings = settings_on(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_algm(model, settings=settings)
        apply_algm(model.bfloat16(), **settings)
    model.apply(lambda part: getattr(part, "reset_parameters", int)())
    with pytest.warns(UserWarning, match="other weights"):
        apply_algm(model, settings=settings)


def test_changed_settings_were_not_measured(model):
    apply_algm(model, **settings_on(model))
    model.algm.proportional_attention = False
    assert model.algm.settings.record is None


@pytest.mark.parametrize(
    "change",
    [
        {"tau": 0.1},
        {"clap_layer": None},
        {"gbm_layers": (2,), "gbm_tau": 0.8},
        {"gbm_tau": (0.8, 0.6)},
        {"compare": "token"},
        {"window": (1, 2)},
        {"reduce": "pick"},
    ],
    ids=str,
)
def test_settings_changed_in_any_way_no_longer_claim_what_was_measured(model, change, tmp_path):
    settings = settings_on(model, others=OTHERS)
    assert settings.record.kept == 0.97
    assert Settings(**{**settings, "tau": settings.tau}).record == settings.record
    changed = {**settings, **change}
    assert Settings(**changed).record is None
    assert replace(settings, **change).record is None
    assert apply_algm(model, **changed).algm.settings.record is None
    settings.save(tmp_path / "s.json")
    assert Settings.load(tmp_path / "s.json") == settings
    written = json.loads((tmp_path / "s.json").read_text())
    written["algm_patch"] |= change
    (tmp_path / "s.json").write_text(json.dumps(written))
    assert Settings.load(tmp_path / "s.json") == Settings(**changed)


def test_settings_that_another_trial_chose_are_not_those_that_were_measured(model):
    measured = measured_on(model)
    assert Settings(**TRIALS[1].settings, record=measured).record is None


@pytest.mark.parametrize("gbm_tau", ["adaptive", 0.9, (), "tau"])
def test_a_trial_without_gbm_is_printed_and_drawn(model, gbm_tau):
    cheapest = Trial(1, 0.8, (), gbm_tau, "token", kept=0.5, cost=10.0)
    settings = settings_on(model, trials=(*TRIALS, cheapest))
    assert "CLAP 1, tau 0.8000; no GBM" in str(settings)
    assert "no CLAP; no GBM" in str(TRIALS[1])
    assert "GBM 3, tau adaptive" in str(replace(cheapest, gbm_layers=(3,), gbm_tau="adaptive"))
    pareto(settings)


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


def test_one_threshold_for_each_layer(model):
    apply_algm(model, clap_layer=None, gbm_layers=[2, 4], gbm_tau=[0.2, 2])
    with torch.no_grad():
        model(photo())
    counts = model.algm.tokens_per_layer
    assert counts[0] == 31 > counts[1] == counts[2] == counts[3]
    assert "layer 2: GBM" in repr(model.algm)
    assert "tau 0.2000" in repr(model.algm)


def test_the_table(model):
    lines = str(settings_on(model)).splitlines()
    assert lines[0] == (
        "VisionTransformer, 5 blocks, 8 images, keep 0.95: of 2 settings, those of which none keeps more at less cost"
    )
    assert lines[1].split() == ["GFLOPs", "of", "unpatched", "agreement", "setting"]
    assert lines[2].startswith(
        "*       30.5        48.1%       0.9700  CLAP 1, tau 0.9000; GBM 2 4, tau 0.8 0.7; by key"
    )
    assert lines[3].split()[-1] == "unpatched"
    assert len(lines) == 4
    assert str(Settings()) == repr(Settings())


@given(st.lists(st.tuples(st.floats(1, 9), st.floats(0, 1)), max_size=12))
def test_the_front_is_what_nothing_beats(points):
    trials = [replace(TRIALS[0], cost=cost, kept=kept) for cost, kept in points]
    best = front(trials)
    for trial in trials:
        beaten = any(
            (other.cost <= trial.cost and other.kept > trial.kept)
            or (other.cost < trial.cost and other.kept >= trial.kept)
            for other in trials
        )
        assert beaten != (trial in best)
    assert best == sorted(best, key=lambda trial: trial.cost)


def test_the_front_is_drawn(model):
    axes = Figure().add_subplot()
    assert pareto(settings_on(model), axes) is axes.figure
    chosen = next(line for line in axes.lines if line.get_label() == "chosen")
    assert (chosen.get_xdata()[0], chosen.get_ydata()[0]) == (30.5, 0.97)
    assert axes.get_xlabel() == "GFLOPs an image"
    with pytest.raises(ValueError, match="were not measured"):
        pareto(Settings())


def test_presets_are_those_of_the_supplement(model):
    assert {name: (preset["clap_layer"], preset["gbm_layers"]) for name, preset in presets.items()} == {
        **{f"segmenter-vit-{size}": (1, (5,)) for size in "tsb"},
        "segmenter-vit-l": (1, (7,)),
        "segvit-vit-l": (1, (12,)),
        "setr-vit-b": (1, (5,)),
        "setr-vit-l": (1, (13,)),
        "eva-vit-g": (1, (11, 21, 31)),
    }
    assert apply_algm(model, **presets["setr-vit-b"], tau=0.9).algm.gbm_layers == (5,)
    with pytest.raises(KeyError, match=r"no preset 'vit'\. There are: segmenter-vit-t"):
        presets["vit"]


def test_what_is_wrong_with_thresholds_for_each_layer():
    for layers, taus in [((3, 5), [0.9]), ((5, 3), [0.9, 0.8])]:
        with pytest.raises(ValueError, match="give one threshold for each layer"):
            Settings(gbm_layers=layers, gbm_tau=taus)
    with pytest.raises(ValueError, match="or above 1 to merge nothing; got 'adaptive'"):
        Settings(gbm_layers=[3], gbm_tau=["adaptive"])
    json.loads(Settings(gbm_layers=[3], gbm_tau=[0.5]).metadata()["algm_patch"])
