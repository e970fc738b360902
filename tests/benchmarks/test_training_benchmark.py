"""The rows of Tab. 4d, on a data set that a tiny ViT learns."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.paper import training
from benchmarks.paper.training_report import WAYS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


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
