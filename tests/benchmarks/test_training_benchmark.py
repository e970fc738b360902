"""The rows of Tab. 4d, on a data set that a tiny ViT learns."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from benchmarks.paper import training
from benchmarks.paper.training_report import WAYS
from tests.support.tiny_training import arguments, make_data, save_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def command(data, weights, tmp_path):
    return lambda *more, out="out", epochs=2: arguments(data, weights, tmp_path / out, *more, epochs=epochs)


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_rows_of_table_4d(command, tmp_path, capsys):
    arguments = command()
    for name in ("--epochs", "--out"):
        at = arguments.index(name)
        del arguments[at : at + 2]
    arguments += ["--out", str(tmp_path / "runs"), "--seeds", "0", "1", "--epochs", "2", "--more", "1", "--rounds", "1"]
    rows, costs = training.main(arguments)
    printed = capsys.readouterr().out
    assert set(rows) == set(WAYS)
    assert all(len(row.miou) == 2 for row in rows.values())
    assert rows["off"].gflops == rows["off, longer"].gflops
    for name in ("direct", "fine-tuned", "trained"):
        assert rows[name].gflops < rows["off"].gflops
    assert costs["step"].faster > 0
    assert "published" in printed
    again, _ = training.main(arguments)  # nothing is trained anew
    assert again == rows
    for name in ("off", "direct", "fine-tuned", "trained"):
        assert f"\n{name} " in printed
