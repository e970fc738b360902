"""Matching of the recorded tensors is the authors'."""

from typing import Any

import pytest
import torch

from algm_patch.functional import TokenMap, clap, gbm
from tests.support.golden import assert_same_partition, golden_files, read_golden


def assert_golden(merged, token_map, golden):
    assert merged.shape == golden["merged"].shape
    assert_same_partition(token_map.labels, golden["token_map"])
    index = golden["token_map"][..., None]
    expected = golden["merged"].gather(1, index.expand(-1, -1, merged.shape[2]))
    torch.testing.assert_close(token_map.unmerge(merged), expected, atol=1e-5, rtol=0)
    sizes = token_map.unmerge(token_map.sizes)
    assert torch.equal(sizes, golden["size"][..., 0].gather(1, index[..., 0]))


def height_and_width(text: str) -> tuple[int, int]:
    height, width = map(int, text.split("x"))
    return height, width


@pytest.mark.parametrize("path", golden_files("clap_*"), ids=lambda path: path.stem)
def test_clap_is_the_authors(path):
    golden, about = read_golden(path)
    grid, window = (height_and_width(about[key]) for key in ("grid", "window"))
    merged, token_map = clap(
        golden["x"], grid, float(about["tau"]), window=window, num_prefix_tokens=int(about["prefix_tokens"])
    )
    assert_golden(merged, token_map, golden)


@pytest.mark.parametrize("path", golden_files("gbm_*"), ids=lambda path: path.stem)
def test_gbm_is_the_authors(path):
    golden, about = read_golden(path)
    before = TokenMap(golden["token_map_in"], golden["size_in"][..., 0])
    merged, token_map = gbm(
        golden["x"], before, layer=int(about["layer"]), num_prefix_tokens=int(about["prefix_tokens"])
    )
    assert_golden(merged, token_map, golden)


@pytest.mark.parametrize("path", golden_files("clap_3*"), ids=lambda path: path.stem)
def test_the_recorded_batch_merges_what_each_image_allows(path):
    golden, about = read_golden(path)
    grid, window = (height_and_width(about[key]) for key in ("grid", "window"))
    settings: dict[str, Any] = {"window": window, "num_prefix_tokens": int(about["prefix_tokens"])}
    x, tau = golden["x"], float(about["tau"])
    merged, _ = clap(x, grid, tau, **settings, batch="min")
    assert merged.shape[1] == golden["merged"].shape[1] == 251
    merged, token_map = clap(x, grid, tau, **settings, batch="image")
    counts = []
    for i, image in enumerate(x):
        alone, own = clap(image[None], grid, tau, **settings)
        counts.append(alone.shape[1])
        torch.testing.assert_close(merged[i : i + 1, : counts[-1]], alone)
        assert torch.equal(token_map.labels[i], own.labels[0])
    assert merged.shape[1] == 251
    assert sorted(counts)[-1] == 251
    assert sorted(counts)[-2] < 251
