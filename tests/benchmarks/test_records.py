"""Predictions that are kept: found again if nothing changed that they depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from algm_patch import apply_algm, calibrate, remove_algm
from benchmarks.evaluation import score
from benchmarks.evaluation.models import SegmentationModel
from benchmarks.evaluation.records import fingerprint
from tests.support.tiny_segmentation import (
    CLASSES,
    count_predictions,
    labels,
    linear,
    noise,
    opened,
    save,
)


def test_an_interrupted_run_goes_on(folder, tmp_path, monkeypatch):
    dataset, records = opened(folder), tmp_path / "records"
    expected = score.evaluate(linear(), dataset, progress=False)
    with monkeypatch.context() as patch:
        count_predictions(patch, stop_after=2)
        with pytest.raises(KeyboardInterrupt):
            score.evaluate(linear(), dataset, records=records, progress=False)
    seen = count_predictions(monkeypatch)
    result = score.evaluate(linear(), dataset, records=records, progress=False)
    assert len(seen) == 1
    assert torch.equal(result.confusion, expected.confusion)
    assert result.gflops == expected.gflops
    score.evaluate(linear(), dataset[::2], records=records, progress=False)
    assert len(seen) == 1


def test_half_a_record_is_none(folder, tmp_path, monkeypatch):
    """A process that dies while it writes leaves nothing that a later one takes for a record."""
    dataset, records = opened(folder), tmp_path / "records"

    def died(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", died)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a process that is killed does not tidy up
        with pytest.raises(KeyboardInterrupt):
            score.evaluate(linear(), dataset, records=records, progress=False)
    assert len([path for path in records.rglob("*") if path.is_file()]) == 1
    seen = count_predictions(monkeypatch)
    score.evaluate(linear(), dataset, records=records, progress=False)
    assert len(seen) == 3


def other_weights(model: SegmentationModel) -> None:
    with torch.no_grad():
        model.network.trunk.blocks[2].mlp.fc1.bias[3] += 1


# Each changes what a model predicts.
CHANGES = {
    "weights": other_weights,
    "a buffer": lambda model: model.network.head[0].running_mean.add_(1),
    "ALGM": lambda model: apply_algm(model, 1, [3]),
    "a setting": lambda model: apply_algm(model, 1, [3], tau=0.9),
    "another setting": lambda model: apply_algm(model, 1, [3], tau=0.9, proportional_attention=False),
    "size": lambda model: setattr(model, "size", (64, 64)),
    "window": lambda model: (setattr(model, "size", 64), setattr(model, "window", 64), setattr(model, "stride", 32)),
    "mean": lambda model: setattr(model, "mean", (0.5, 0.5, 0.5)),
    "antialias": lambda model: setattr(model, "antialias", False),
    "number of heads": lambda model: setattr(model.network.trunk.blocks[0].attn, "num_heads", 4),
    "dtype": lambda model: model.double(),
    "scale of a layer": lambda model: setattr(model.network.trunk.blocks[0], "ls1", nn.Sigmoid()),
}


def test_a_changed_setting_reuses_nothing():
    """A calibrated model reuses nothing either; a copy, and a model whose patch was removed, are the same model."""
    model = linear()
    found = [fingerprint(model)]
    for change in CHANGES.values():
        changed = linear()
        change(changed)
        found.append(fingerprint(changed))
    calibrated = apply_algm(linear(), 1, [3])
    calibrate(calibrated, torch.rand(2, 3, 64, 96))
    found.append(fingerprint(calibrated))
    assert len(set(found)) == len(CHANGES) + 2
    assert fingerprint(remove_algm(apply_algm(linear(), 1, [3]))) == found[0]
    assert fingerprint(linear()) == found[0]


def test_changed_code_or_data_reuses_nothing(folder, tmp_path, monkeypatch):
    records = tmp_path / "records"
    score.evaluate(linear(), opened(folder), records=records, progress=False)
    seen = count_predictions(monkeypatch)
    save(noise(99), folder / "images/1.jpg")
    score.evaluate(linear(), opened(folder), records=records, progress=False)
    assert len(seen) == 1
    monkeypatch.setattr("benchmarks.evaluation.records.code_digest", lambda: "other code")
    score.evaluate(linear(), opened(folder), records=records, progress=False)
    assert len(seen) == 4


def test_labels_are_read_anew(folder, tmp_path, monkeypatch):
    """Records hold predictions: corrected labels need no new ones."""
    records = tmp_path / "records"
    before = score.evaluate(linear(), opened(folder), records=records, progress=False)
    save(labels(50, [*range(CLASSES)]), folder / "labels/1.png")
    seen = count_predictions(monkeypatch)
    after = score.evaluate(linear(), opened(folder), records=records, progress=False)
    assert not seen
    assert after.miou == score.evaluate(linear(), opened(folder), progress=False).miou != before.miou


def test_what_records_cannot_tell_apart_is_refused(folder, tmp_path):
    hooked, exchanged = linear(), linear()
    hooked.network.trunk.blocks[0].register_forward_hook(lambda *_: None)
    exchanged.network.trunk.blocks[0].attn.forward = lambda x, **_: x
    for model in (hooked, exchanged):
        with pytest.raises(ValueError, match="without records"):
            score.evaluate(model, opened(folder), records=tmp_path, progress=False)
        score.evaluate(model, opened(folder), progress=False)
