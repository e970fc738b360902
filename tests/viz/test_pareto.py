"""The Pareto front, drawn."""

from dataclasses import replace
from typing import Any

import pytest
from matplotlib.figure import Figure

from algm_patch import Settings
from algm_patch.settings.trial import Trial
from algm_patch.viz import pareto
from tests.support.models import build
from tests.support.records import TRIALS, settings_on


@pytest.fixture
def model():
    return build("ViT")


@pytest.mark.parametrize("gbm_tau", ["adaptive", 0.9, (), "tau"])
def test_a_trial_without_gbm_is_printed_and_drawn(model, gbm_tau):
    cheapest = Trial(1, 0.8, (), gbm_tau, "token", kept={"pixels": 0.5, "classes": 0.2}, cost=10.0)
    settings = settings_on(model, trials=(*TRIALS, cheapest))
    assert "CLAP 1, tau 0.8000; no GBM" in str(settings.record)
    assert "no CLAP; no GBM" in str(TRIALS[1])
    assert "GBM 3, tau adaptive" in str(replace(cheapest, gbm_layers=(3,), gbm_tau="adaptive"))
    pareto(settings)


def test_the_front_is_drawn(model):
    axes = Figure().add_subplot()
    assert pareto(settings_on(model), axes) is axes.figure
    chosen: Any = next(line for line in axes.lines if line.get_label() == "chosen")
    assert (chosen.get_xdata()[0], chosen.get_ydata()[0]) == (30.5, 0.97)
    assert axes.get_xlabel() == "GFLOPs an image"
    classes, (own,) = pareto(settings_on(model)).axes[1], pareto(settings_on(model), name="classes").axes
    for axes in (classes, own):
        rival: Any = next(line for line in axes.lines if line.get_label() == "ToMe")
        assert (rival.get_xdata()[0], rival.get_ydata()[0]) == (32.0, 0.8)
    with pytest.raises(ValueError, match="kept in this record is pixels and classes, not 'miou'"):
        pareto(settings_on(model), name="miou")
    with pytest.raises(ValueError, match="were not measured"):
        pareto(Settings())
