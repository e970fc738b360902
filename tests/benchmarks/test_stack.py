"""Each stack runs what it names, compares within itself, and lists what does not run."""

import pytest
import torch

from benchmarks.cost import stack
from benchmarks.cost.stack_methods import FIXED, THRESHOLDS
from benchmarks.cost.stack_rows import RESOLUTION, Stack, stacked, unchanged

TINY = ["--model", "test_vit", "--size", "96", "--rounds", "1", "--batches", "1", "--backend", "aot_eager"]


@pytest.mark.parametrize("compiler", ["eager", pytest.param("whole", marks=pytest.mark.slow)])
def test_every_stack_has_a_row_for_each_method(compiler, capsys):
    found = stack.main([*TINY, "--dtypes", "float32", "bfloat16", "--compilers", compiler])
    assert [axes for _, axes in found] == [Stack(each, compiler, "plain", 1) for each in ("float32", "bfloat16")]
    for rows in found.values():
        assert {row.method for row in rows} == {FIXED, THRESHOLDS, RESOLUTION}
        assert not any(row.error for row in rows)
        ideal = {row.method: row.ideal for row in rows}
        assert ideal[FIXED] == pytest.approx(2, rel=0.15)
        assert ideal[RESOLUTION] is None
        assert all(row.faster > 0 and row.agrees is None for row in rows)  # random weights answer nothing
    assert f"bfloat16, {compiler}, batch 1: unpatched" in capsys.readouterr().out


def test_what_does_not_run_is_a_row_with_its_error(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    (rows,) = stack.main([*TINY, "--dtypes", "float32", "--compilers", "eager", "--weights", "int8"]).values()
    assert all("pip install torchao" in row.error for row in rows)
    assert "int8, batch 1: unpatched does not run" in capsys.readouterr().out


def test_a_stack_leaves_the_model_as_it_is():
    model = torch.nn.Linear(3, 3)
    runner = stacked(Stack("bfloat16", "eager", "plain", 8), unchanged, model, torch.ones(8, 3), "eager", False)
    assert runner()[0].dtype == torch.bfloat16
    assert model.weight.dtype == torch.float32
