"""The front that tune finds: of which images it tells, what ends it early, what it is compared with."""

from typing import Any

import pytest

from algm_patch import apply_algm, tune
from algm_patch.tuning.budget import Budget, OutOfTime
from tests.support.classes import Classes
from tests.support.models import build, photo

QUICK: dict[str, Any] = {"budget": "60s"}
MANY = photo(batch=8, seed=11)


@pytest.fixture
def model():
    return Classes().eval()


def interrupted_after(calls, error):
    """Return a predict that raises an error when it is called once too often, and the list of its calls."""
    seen: list[int] = []

    def predict(model, images):
        seen.append(1)
        if len(seen) > calls:
            raise error
        return model(images)

    return predict, seen


def test_an_interruption_keeps_the_best_so_far(model):
    counted, seen = interrupted_after(10**6, KeyboardInterrupt)
    whole = tune(model, MANY, keep=0.1, predict=counted, **QUICK)
    predict, _ = interrupted_after(len(seen) - 12, KeyboardInterrupt)  # while it verifies, or measures rivals
    settings = tune(model, MANY, keep=0.1, predict=predict, **QUICK)
    assert "cut short: it was interrupted" in str(settings.record)
    assert "cut short" not in str(whole.record)
    assert set(settings.record.trials) <= set(whole.record.trials)
    assert model.algm.settings == settings


def test_when_time_is_up_the_best_so_far_is_taken(model, monkeypatch):
    checks = 0

    def check(budget):
        nonlocal checks
        checks += 1
        if checks > (60 if budget.until < budget.seconds else 75):
            raise OutOfTime

    monkeypatch.setattr(Budget, "check", check)
    settings = tune(model, MANY, keep=0.1, **QUICK)
    assert "cut short: 60s was over" in str(settings.record)
    assert model.algm.settings == settings
    assert len(settings.record.trials) == 3  # of four images each


def test_thresholds_and_what_is_kept_are_of_other_images(model):
    settings = tune(model, MANY, keep=0.5, **QUICK)
    record = settings.record
    assert (record.images, record.held_back) == (8, 4)
    assert all(trial.low[name] <= trial.kept[name] for trial in record.trials for name in ("pixels", "classes"))
    assert record.low["pixels"] >= 0.5
    few = tune(model, MANY[:3], keep=0.5, **QUICK).record
    assert (few.images, few.held_back, few.low) == (3, 0, {})
    assert "of the same images; no bound" in str(few)


def test_two_things_can_be_kept_and_the_record_gives_others(model):
    both = {"pixels": 0.3, "classes": 0.3}
    settings = tune(model, MANY, keep=both, **QUICK)
    assert all(settings.record.low[name] >= 0.3 for name in both)
    least = min(trial.cost for trial in settings.record.trials)
    part = 1.0001 * least / settings.record.unpatched_cost
    assert apply_algm(model, settings=settings.at(gflops=part)).algm.settings.record.cost == least


def test_rivals_are_measured_or_it_is_said_why_not(model):
    notes = " ".join(tune(model, MANY, keep=0.1, **QUICK).record.notes)  # this one takes one size of images
    assert (
        "lower resolution, 5 x 4 patches was not measured: ValueError: on images of 80 x 64 pixels the model raises "
        in notes
    )
    assert "takes any size with dynamic_img_size=True" in notes
    flexible = build("DINOv2", depth=3)
    rivals = tune(flexible, photo("DINOv2", batch=4), keep=0.5, **QUICK).record.rivals
    assert [rival.name for rival in rivals] == [
        "ToMe, r = 5",
        "ToMe, r = 7",
        "lower resolution, 5 x 4 patches",
        "lower resolution, 4 x 4 patches",
    ]
    assert all(0 < rival.low["cosine"] <= rival.kept["cosine"] < 1 for rival in rivals)
    assert rivals[0].cost > rivals[1].cost
