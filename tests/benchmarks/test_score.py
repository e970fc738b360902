"""Scores are those of torchmetrics; GFLOPs and agreement; models and data that do not fit each other."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from algm_patch import apply_algm
from benchmarks.evaluation import score
from benchmarks.evaluation.layouts import open_dataset
from benchmarks.evaluation.weights import ModelError
from tests.support.tiny_segmentation import (
    CLASSES,
    HIGH,
    IGNORED,
    WIDE,
    labels,
    linear,
    make_folder,
    opened,
    save,
)


def test_the_score_is_that_of_torchmetrics(folder):
    """The score is over all pixels of all images; a class in neither labels nor predictions does not count."""
    (folder / "classes.txt").write_text("\n".join(f"name {i}" for i in range(CLASSES)))
    for i in range(3):
        save(labels(i, [0, 1, 3, IGNORED]), folder / f"labels/{i}.png")
    model, dataset = linear(), opened(folder)
    logits = model.predict(dataset[0].image, (HIGH, WIDE))
    with torch.no_grad():
        bias = model.network.head[1].bias
        bias[2] += (logits.amax(0) - logits[2]).quantile(0.3)  # predicted, but in no label
        bias[4] = -1e6  # neither
    result = score.evaluate(model, dataset, progress=False)

    predicted = torch.stack([model.predict(sample.image, sample.label.shape).argmax(0) for sample in dataset])
    target = torch.stack([sample.label for sample in dataset])
    jaccard = MulticlassJaccardIndex(CLASSES, average="macro", ignore_index=IGNORED)
    each = MulticlassJaccardIndex(CLASSES, average="none", ignore_index=IGNORED)
    accuracy = MulticlassAccuracy(CLASSES, average="micro", ignore_index=IGNORED)
    assert result.miou == pytest.approx(jaccard(predicted, target).item())
    assert result.accuracy == pytest.approx(accuracy(predicted, target).item())
    torch.testing.assert_close(result.iou[:4].float(), each(predicted, target)[:4])
    assert result.iou[4].isnan()
    assert result.confusion.sum() == (target != IGNORED).sum()
    assert 0.05 < result.miou < 0.9
    assert (predicted == 2).any()  # what is predicted and in no label does count
    assert result.iou[2] == 0


def test_an_ignored_class_among_the_classes(folder):
    """Predictions of the ignored class are wrong, but it is no class: 0 may mean 'not labelled'."""
    dataset = open_dataset("folder", make_folder(folder, values=[0, 1, 2, 3, 4]), ignore=0, progress=False)
    model = linear()
    logits = model.predict(dataset[0].image, (HIGH, WIDE))
    with torch.no_grad():
        model.network.head[1].bias[0] += (logits.amax(0) - logits[0]).quantile(0.3)
    result = score.evaluate(model, dataset, progress=False)
    assert result.confusion[:, 0].sum() > 0
    assert result.confusion[0].sum() == 0
    assert result.iou[0].isnan()
    assert result.miou == pytest.approx(result.iou[1:].mean().item())


def test_the_best_model_scores_all(folder):
    dataset = opened(folder)
    right = iter([sample.label for sample in dataset])
    model = linear((HIGH, WIDE))
    model.network.register_forward_hook(
        lambda *_: nn.functional.one_hot(next(right).clamp(max=CLASSES - 1), CLASSES).movedim(-1, 0)[None].float()
    )
    result = score.evaluate(model, dataset, progress=False)
    assert (result.miou, result.accuracy) == (1.0, 1.0)


def test_gflops_and_agreement(folder):
    """GFLOPs are an image's, of the ViT, and fall with merging; agreement counts every pixel."""
    model, dataset = linear(), opened(folder)
    maps = list(score.predictions(model, dataset, progress=False))
    before = score.evaluate(model, dataset, reference=maps, progress=False)
    assert before.agreement == 1.0
    assert not hasattr(model, "algm")
    assert score.evaluate(model, dataset, progress=False).agreement is None
    apply_algm(model, 1, [2], tau=-1.0)
    after = score.evaluate(model, dataset, reference=maps, progress=False)
    others = list(score.predictions(model, dataset, progress=False))
    same = sum(int((a == b).sum()) for a, b in zip(maps, others, strict=True))
    assert after.agreement == same / (3 * HIGH * WIDE) < 1
    assert after.gflops < 0.6 * before.gflops
    assert before.gflops == pytest.approx(model.algm.unpatched_gflops)


def test_a_reference_of_other_images_is_refused(folder):
    model, dataset = linear(), opened(folder)
    maps = list(score.predictions(model, dataset[:2], progress=False))
    with pytest.raises(ValueError, match="reference"):
        score.evaluate(model, dataset, reference=maps, progress=False)
    with pytest.raises(ValueError, match="reference"):
        score.evaluate(model, dataset, reference=maps * 2, progress=False)


def test_training_mode_is_refused(folder):
    model = linear()
    model.network.head.train()
    with pytest.raises(ValueError, match="training mode"):
        score.evaluate(model, opened(folder), progress=False)


def test_other_classes_are_refused(folder):
    save(labels(0, [0, 1]), folder / "labels/0.png")
    dataset = open_dataset("folder", folder, progress=False)  # 9 was meant to be ignored
    with pytest.raises(ModelError, match=r"tiny knows 5 classes, folder set has 10.*Does a label mean 'ignore'"):
        score.evaluate(linear(), dataset, progress=False)
