"""Merging inside the global blocks of SAM's trunk: both ways to give merged tokens their relative positions."""

import pytest
import timm
import torch

from benchmarks.cost import windowed


@pytest.fixture(scope="module")
def global_block():
    torch.manual_seed(0)
    model = timm.create_model("samvit_base_patch16", img_size=(96, 80), embed_dim=64, depth=3, num_heads=4)
    return windowed.enliven(model).eval().blocks[2]


@torch.no_grad()
def test_positions_folded_into_queries_and_keys_are_the_blocks_own(global_block):
    assert global_block.window_size == 0
    x = torch.randn(2, 6, 5, 64)
    torch.testing.assert_close(windowed.run_folded(global_block, x), global_block(x), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("after_mlp", [False, True])
@pytest.mark.parametrize("attend", [windowed.by_leaders, windowed.by_folding])
def test_tokens_that_merge_with_their_copies(global_block, attend, after_mlp):
    """Both are the block's own where nothing merges; where tokens merge, the residual stream stays whole."""
    x = torch.randn(2, 6, 5, 64)
    found = windowed.run_merged(global_block, x, 0.0, attend, after_mlp)
    torch.testing.assert_close(found, global_block(x), atol=1e-4, rtol=1e-4)
    merged = windowed.run_merged(global_block, x, 0.5, attend, after_mlp)
    assert merged.shape == x.shape
    assert not torch.allclose(merged, found, atol=1e-2)


def test_the_command(capsys):
    windowed.main(["--size", "64", "--rounds", "1", "--output"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("4 global blocks of 12")
    rows = [line.split("|")[1:-1] for line in lines if line.startswith("| ") and "x" in line]
    assert len(rows) == 8
    assert [float(row[3]) for row in rows[:2]] == [1.0, 1.0]
