"""The search for settings: what it promises, and what it leaves behind."""

from typing import Any

import numpy as np
import pytest
import torch

from algm_patch import apply_algm, calibrate, remove_algm, tune
from algm_patch.tuning.bench import Bench
from algm_patch.tuning.tune import NothingFoundError
from tests.support.classes import Classes
from tests.support.models import build, photo

IMAGES = photo(batch=3, seed=7)
QUICK: dict[str, Any] = {"budget": "60s"}


@pytest.fixture
def model():
    return Classes().eval()


@torch.no_grad()
def classes(model):
    return torch.cat([model(image[None]) for image in IMAGES]).argmax(1)


def test_it_keeps_what_it_says_and_costs_less(model):
    before = classes(model)
    settings = tune(model, IMAGES, keep=0.8, **QUICK)
    measured = settings.record
    assert model.trunk.algm.settings == settings
    assert measured.kept["pixels"] >= 0.8
    assert measured.cost < measured.unpatched_cost
    assert (classes(model) == before).double().mean().item() == pytest.approx(measured.kept["pixels"])
    assert (measured.names, measured.unit, measured.images) == (("pixels", "classes"), "GFLOPs", 3)
    assert measured.cost == min(trial.cost for trial in measured.trials if trial.kept["pixels"] >= 0.8)


def test_the_same_seed_gives_the_same(model):
    first = tune(model, IMAGES, keep=0.9, seed=3, **QUICK)
    remove_algm(model)
    assert tune(model, list(IMAGES), keep=0.9, seed=3, **QUICK) == first


@pytest.mark.parametrize("patched", [False, True], ids=["unpatched", "patched"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_error_the_model_is_as_it_was(model, patched, error):
    if patched:
        apply_algm(model, clap_layer=2, gbm_layers=[3], tau=0.4)
    before, settings = traces(model), patched and model.algm.settings
    calls = 0

    def predict(model, images):
        nonlocal calls
        calls += 1
        if calls > 8:
            raise error("from predict")
        return model(images)

    with pytest.raises(error, match="from predict"):
        tune(model, IMAGES, keep=0.8, predict=predict, **QUICK)
    assert traces(model) == before
    assert not patched or model.algm.settings == settings


@pytest.mark.parametrize("patched", [False, True], ids=["unpatched", "patched"])
def test_nothing_keeps_enough(model, patched):
    if patched:
        apply_algm(model, gbm_layers=[2])
    settings = patched and model.algm.settings
    before = traces(model)
    message = (
        r"nothing .* in 60s costs less .* and surely keeps metric 1 of what Classes answers; at most metric 0\.5 was"
    )
    with pytest.raises(NothingFoundError, match=message):
        tune(model, IMAGES, keep=1, metric=lambda model: 1 - merged(model) / 2, **QUICK)
    assert traces(model) == before
    assert not patched or model.algm.settings == settings


def merged(model):
    """Return whether the model has a stage that merges."""
    return model.algm.clap_layer is not None or bool(model.algm.gbm_layers)


def traces(model):
    return {name: (type(part), sorted(vars(part))) for name, part in model.named_modules()}


def test_other_settings_stay(model):
    apply_algm(model, gbm_layers=[3], window=(2, 1), proportional_attention=False)
    settings = tune(model, IMAGES, keep=0.8, **QUICK)
    assert (settings.window, settings.proportional_attention) == ((2, 1), False)
    assert model.algm.settings == settings


@pytest.mark.parametrize("merge_to", [0.6, [0.7, 0.8]])
def test_fixed_counts_and_what_was_calibrated_give_way(model, merge_to):
    apply_algm(model, gbm_layers=[3], window=(2, 1))
    calibrate(model, IMAGES)
    model.algm.merge_to = merge_to
    before = model.algm.settings
    with pytest.raises(RuntimeError, match="is over"):
        tune(model, IMAGES, metric=over, **QUICK)
    assert model.algm.settings == before
    with pytest.raises(ValueError, match=r"calibrate: merge_to=.* keeps fixed counts, which use no threshold"):
        calibrate(model, IMAGES)
    assert model.algm.settings == before
    settings = tune(model, IMAGES, keep=0.5, **QUICK)
    assert (settings.merge_to, settings.calibrated, settings.window) == (None, None, (2, 1))
    assert dict(settings.record.others)["window"] == (2, 1)


def over(model):
    raise RuntimeError("is over")


def test_modes_and_gradients_stay(model):
    model.train()
    model.head.eval()
    tune(model, IMAGES, keep=0.8, **QUICK)
    assert (model.training, model.trunk.training, model.head.training) == (True, True, False)
    assert torch.is_grad_enabled()
    assert model(IMAGES).requires_grad


def test_a_metric_decides(model):
    before, asked = classes(model), []

    def metric(model):
        asked.append((classes(model) == before).double().mean().item() + 1)
        return asked[-1]

    settings = tune(model, IMAGES, keep=0.9, metric=metric, **QUICK)
    assert settings.record.names == ("metric",)
    assert asked[0] == 2
    assert settings.record.kept["metric"] == pytest.approx(metric(model) / asked[0])
    assert settings.record.kept["metric"] >= 0.9


@pytest.mark.parametrize("windows", [1, 3])
def test_an_answer_costs_every_forward_pass_that_it_takes(model, windows):
    """Sliding windows take several, in a batch or one after the other."""

    def predict(model, images):
        return sum(model(images.roll(shift, 3)) for shift in range(windows)) + model(images.repeat(2, 1, 1, 1))[:1]

    settings = tune(model, IMAGES[:1], keep=0.5, predict=predict, **QUICK)
    predict(model, IMAGES[:1])
    assert settings.record.unpatched_cost == pytest.approx((windows + 2) * model.algm.unpatched_gflops)
    assert settings.record.cost < settings.record.unpatched_cost


def test_the_cost_is_that_of_the_handle(model):
    settings = tune(model, IMAGES, keep=0.5, **QUICK)
    costs = []
    with torch.no_grad():
        for image in IMAGES.split(1):
            model.eval()(image)
            costs.append(model.algm.gflops)
    assert settings.record.cost == pytest.approx(sum(costs) / len(costs))


def test_time(model, monkeypatch):
    """A pass takes half the unpatched model's time, whatever the machine does."""
    monkeypatch.setattr(Bench, "cost_of", lambda bench, index, found: bench.reference.costs[index] / 2)
    settings = tune(model, IMAGES, keep=0.5, cost="time", **QUICK)
    assert settings.record.unit == "seconds"
    assert settings.record.cost == pytest.approx(settings.record.unpatched_cost / 2, rel=0.5)
    assert "lower resolution was not measured" not in str(settings.record)


def test_settings_that_take_more_time_than_the_unpatched_model_are_no_gain(model, monkeypatch):
    monkeypatch.setattr(Bench, "cost_of", lambda bench, index, found: 2 * max(bench.reference.costs))
    with pytest.raises(NothingFoundError, match="costs less than the unpatched model and surely keeps"):
        tune(model, IMAGES, keep=0.5, cost="time", **QUICK)


def test_tokens_are_compared_where_there_is_no_head():
    settings = tune(build("ViT"), IMAGES, keep=0.9, **QUICK)
    assert settings.record.names == ("cosine",)


def test_a_block_without_keys_to_compare():
    settings = tune(build("ParallelThingsBlock"), IMAGES, keep=0.9, **QUICK)
    assert {trial.compare for trial in settings.record.trials} == {"token"}


@pytest.mark.parametrize(
    ("given_", "error", "message"),
    [
        ({"keep": 0}, ValueError, "above 0 and at most 1, or a dict .*; got 0"),
        ({"keep": {}}, ValueError, "got {}"),
        ({"keep": {"miou": 0.9}}, ValueError, "asks for 'miou', but what is kept here is 'pixels' and 'classes'"),
        ({"keep": 98}, ValueError, "got 98"),
        ({"cost": "flops"}, ValueError, "cost is one of 'gflops', 'time'; got 'flops'"),
        ({"budget": "10"}, ValueError, "such as '90s', '10min' or '1h'; got '10'"),
        ({"budget": 0}, ValueError, "got 0"),
        ({"budget": "1.2.3s"}, ValueError, r"such as '90s', '10min' or '1h'; got '1\.2\.3s'"),
        ({"budget": ".s"}, ValueError, r"got '\.s'"),
        ({"budget": None}, ValueError, "budget is a number of seconds, .*; got None"),
        ({"budget": float("inf")}, ValueError, "got inf"),
        ({"keep": "much"}, ValueError, "keep is the part .*; got 'much'"),
        ({"cost": ["time"]}, ValueError, "cost is one of"),
        ({"budget": 1e-6}, NothingFoundError, "1e-06 was over before the unpatched model had answered 3 images"),
        ({"images": []}, ValueError, "tune got no images"),
        ({"images": ["a.png"]}, FileNotFoundError, "a.png"),
        ({"images": [1]}, TypeError, "expects paths, PIL images, .*got <class 'int'>"),
        ({"images": [np.zeros((64, 64, 3))]}, TypeError, r"uint8 \[H, W, 3\]; got float64 \[64, 64, 3\]"),
        (
            {"predict": lambda model, images: [model(images)]},
            TypeError,
            "predict returned list, which is no dense answer",
        ),
        ({"predict": lambda model, images: model(images).mean((2, 3))}, ValueError, r"predict returned \[1, 5\]"),
        ({"predict": lambda model, images: images[:, 0]}, ValueError, "predict did not run the ViT of Classes"),
        (
            {"predict": lambda model, images: images[:, 0], "metric": lambda model: 1.0},
            ValueError,
            "predict did not run the ViT of Classes",
        ),
        ({"metric": lambda model: float("nan")}, ValueError, "metric returned nan"),
        ({"metric": lambda model: 0.0}, ValueError, "metric returned 0.0 for the unpatched model"),
    ],
)
def test_what_is_wrong_is_said(model, given_, error, message):
    before = traces(model)
    with pytest.raises(error, match=message):
        tune(model, **{"images": IMAGES, **QUICK, **given_})
    assert traces(model) == before
