"""The record of tune stays with the settings that it found, and warns on another model."""

import json
import re
import warnings
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from algm_patch import Settings, __version__, apply_algm
from algm_patch.settings.record import front
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


def test_the_table(model):
    lines = str(settings_on(model).record).splitlines()
    assert lines[0] == (
        "VisionTransformer, 5 blocks, 8 images, keep 0.95: of 2 settings, "
        "those that none beats at the same or less cost"
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
