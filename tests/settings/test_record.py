"""The record of tune stays with the settings that it found, and warns on another model."""

import json
import re
import warnings
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from algm_patch import Settings, __version__, apply_algm
from algm_patch.settings.trial import front
from tests.support.models import build
from tests.support.records import TRIALS, measured_on, settings_on

OTHERS = (("window", (2, 2)), ("proportional_attention", True), ("reduce", "mean"))


@pytest.fixture
def model():
    return build("ViT")


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
    apply_algm(model, settings=settings_on(model, others=OTHERS))
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
    assert settings.record.kept["pixels"] == 0.97
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


def test_the_table(model):
    lines = str(settings_on(model).record).splitlines()
    assert lines[0] == (
        "VisionTransformer, 5 blocks, 12 images, keep pixels 0.95: of 2 settings, "
        "those that none beats at the same or less cost"
    )
    assert lines[1].startswith("thresholds from 6 images, what is kept measured on the 6 held back (in brackets: at")
    assert lines[2].split() == ["GFLOPs", "of", "unpatched", "pixels", "classes", "setting"]
    assert lines[3].split()[:7] == ["*", "30.5", "48.1%", "0.9700", "(0.9600)", "0.9000", "(0.8600)"]
    assert lines[3].endswith("CLAP 1, tau 0.9000; GBM 2 4, tau 0.8 0.7; by key")
    assert lines[4].split() == ["63.4", "100.0%", "1.0000", "1.0000", "unpatched"]
    assert lines[6].endswith("0.8000 (0.7000)  ToMe, r = 4")
    assert lines[7].endswith("CLAP 1: 0.01, GBM 2: 0.02")
    assert len(lines) == 8
    assert "kept measured on the 6 held back\n" in str(measured_on(model, low={}))
    assert "no bound" in str(measured_on(model, held_back=0, low={}))
    assert str(Settings()) == repr(Settings())


@given(st.lists(st.tuples(st.floats(1, 9), st.floats(0, 1)), max_size=12))
def test_the_front_is_what_nothing_beats(points):
    trials = [replace(TRIALS[0], cost=cost, kept={"pixels": kept}) for cost, kept in points]
    best = front(trials, "pixels")
    for trial in trials:
        beaten = any(
            (other.cost <= trial.cost and other.kept["pixels"] > trial.kept["pixels"])
            or (other.cost < trial.cost and other.kept["pixels"] >= trial.kept["pixels"])
            for other in trials
        )
        assert beaten != (trial in best)
    assert best == sorted(best, key=lambda trial: trial.cost)


def test_other_settings_of_the_record_are_chosen_without_measuring(model, tmp_path):
    settings = settings_on(model)
    settings.save(tmp_path / "s.json")
    for own in (settings, Settings.load(tmp_path / "s.json")):
        other = own.at(keep={"classes": 0.9})  # the other one's bound is 0.86
        assert other.clap_layer is None
        assert (other.record.cost, other.record.chosen) == (31.0, TRIALS[1])
        assert other.at(keep=0.95) == other.at(gflops=0.485) == own
        assert own.at(gflops=0.5) == own  # both cost less, and this keeps more pixels
    assert Settings.load(tmp_path / "s.json") == settings


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"gflops": 0.4}, "at(gflops=0.4): no settings of this record cost so little. They span 0.481 to 0.489 of"),
        ({"gflops": 31}, "gflops is a part of the unpatched model's, above 0 and at most 1; got 31"),
        ({"keep": 0.965}, "at(keep=0.965): no settings of this record surely keep so much. They span pixels 0.9400 to"),
        ({"keep": {"miou": 0.9}}, "this record knows 'pixels', 'classes', not 'miou'"),
        ({}, "at takes one of gflops and keep"),
        ({"gflops": 0.5, "keep": 0.9}, "at takes one of gflops and keep"),
    ],
    ids=str,
)
def test_what_no_settings_of_the_record_do_is_said(model, asked, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        settings_on(model).at(**asked)


def test_a_record_of_seconds_and_settings_without_a_record(model):
    with pytest.raises(ValueError, match=r"the costs of this record are seconds\. Ask at\(keep=\.\.\.\)"):
        settings_on(model, unit="seconds").at(gflops=0.5)
    with pytest.raises(ValueError, match="these settings have no record"):
        Settings().at(gflops=0.5)
