"""Areas against loops over pixels, and intervals that hold what they say they hold."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algm_patch import apply_algm
from algm_patch.tuning.areas import equal_share, mean_iou
from benchmarks.evaluation import bootstrap, score
from benchmarks.evaluation.bootstrap import Estimate, estimate, miou_difference
from benchmarks.evaluation.score import areas_of
from tests.support.tiny_segmentation import CLASSES, linear, opened


def iou_by_pixels(maps, others, classes):
    """Return the mean IoU of class maps as lists of numbers, over the classes that occur in either."""
    pairs = [pair for one, other in zip(maps, others, strict=True) for pair in zip(one, other, strict=True)]
    ious = []
    for wanted in range(classes):
        union = [pair for pair in pairs if wanted in pair]
        if union:
            ious.append(sum(pair == (wanted, wanted) for pair in union) / len(union))
    return sum(ious) / len(ious)


maps = st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=3, max_size=3)


@given(maps, maps)
def test_classes_and_pixels_are_those_that_a_loop_counts(ones, others):
    """Take all images together, not the mean of the images' own; a class in neither map does not count."""
    areas = []
    for one, other in zip(ones, others, strict=True):
        confusion = torch.zeros(5, 5, dtype=torch.int64)
        for pair in zip(one, other, strict=True):
            confusion[pair] += 1
        areas.append(areas_of(confusion))
    total = torch.stack(areas).sum(0)
    assert mean_iou(total).item() == pytest.approx(iou_by_pixels(ones, others, 5))
    same = sum(a == b for one, other in zip(ones, others, strict=True) for a, b in zip(one, other, strict=True))
    assert equal_share(total).item() == same / 18


def test_a_model_that_merges_is_compared_class_by_class(folder):
    model, dataset = linear(), opened(folder)
    reference = list(score.predictions(model, dataset, progress=False))
    before = score.evaluate(model, dataset, reference=reference, progress=False)
    assert (before.agreement, before.classes) == (1.0, 1.0)
    apply_algm(model, 1, [2], tau=-1.0)
    after = score.evaluate(model, dataset, reference=reference, progress=False)
    own = [one.flatten().tolist() for one in score.predictions(model, dataset, progress=False)]
    expected = iou_by_pixels(own, [one.flatten().tolist() for one in reference], CLASSES)
    assert after.classes == pytest.approx(expected)
    assert after.agreement is not None
    assert 0 < expected < after.agreement < 1
    assert after.miou - before.miou == pytest.approx(miou_difference(after, before).value / 100)


def images_of(generator, count, quality):
    """Return areas [count, 3, 3] of images with a share of right pixels of their own, a rare class in some."""
    found = []
    for _ in range(count):
        shares = torch.tensor([0.6, 0.35, 0.05]) * torch.rand(3, generator=generator)
        label = torch.multinomial(shares, 200, replacement=True, generator=generator)
        right = torch.rand(200, generator=generator) < quality - 0.3 * torch.rand(1, generator=generator)
        other = torch.randint(3, (200,), generator=generator)
        predicted = torch.where(right, label, other)
        found.append(areas_of(torch.bincount(3 * label + predicted, minlength=9).view(3, 3)))
    return torch.stack(found)


@pytest.mark.parametrize("measure", [equal_share, mean_iou])
def test_intervals_hold_the_figure_of_all_images_19_times_in_20(measure):
    generator = torch.Generator().manual_seed(0)
    truth = 100 * measure(images_of(generator, 3000, 0.9).sum(0)).item()
    held = []
    for _ in range(100):
        found = estimate(measure, images_of(generator, 40, 0.9))
        assert found.low < found.value < found.high
        held.append(found.low <= truth <= found.high)
    assert 87 <= sum(held) <= 99


def test_differences_are_of_the_same_images():
    """Two models that are equal in each image differ by nothing, though the images differ much."""
    generator = torch.Generator().manual_seed(0)
    images = images_of(generator, 30, 0.9)
    difference = partial(estimate, lambda one, other: mean_iou(one) - mean_iou(other))
    assert difference(images, images) == Estimate(0, 0, 0)
    slightly = images.clone()
    slightly[:, 0, 0] = (0.98 * slightly[:, 0, 0]).long()
    paired, alone = difference(slightly, images), estimate(mean_iou, images)
    assert paired.high < 0
    assert paired.high - paired.low < 0.3 * (alone.high - alone.low)


def test_one_image_has_no_interval(folder):
    result = score.evaluate(linear(), opened(folder)[:1], progress=False)
    found = miou_difference(result, result)
    assert (found.value, found.interval) == (0, "no interval")
    with pytest.raises(ValueError, match="with a reference"):
        bootstrap.agreement(result)
