"""The benchmark of loops runs the same merges in each variant, and prints what each takes."""

from typing import Any

import torch

from algm_patch import apply_algm
from benchmarks.cost import loops
from tests.support.models import build, photo


def test_the_benchmark_runs(capsys):
    loops.main(["--model", "vit_tiny_patch16_224", "--size", "128", "--rounds", "1", "--batch", "2"])
    printed = capsys.readouterr().out
    assert printed.count("of the known method's time") == 2


@torch.no_grad()
def test_both_loops_return_the_same_and_go_different_ways():
    model: Any = apply_algm(build("ViT", depth=8), **loops.SETTINGS)
    found = loops.loop(model, photo())
    assert "nothing read the full grid" in str(model.algm)
    layers = model.algm.tokens_per_layer
    expected = loops.at_every_block(model, photo())
    assert "every block gave back the full grid" in str(model.algm)
    torch.testing.assert_close(found, expected)  # means of what was restored, to rounding
    model.forward_intermediates(photo(), indices=[3], norm=True)
    assert model.algm.tokens_per_layer == layers
