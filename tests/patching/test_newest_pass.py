"""The handle tells of the newest forward pass, however it ran."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from algm_patch import apply_algm
from tests.support.facts import facts_of
from tests.support.models import build, photo
from tests.support.threads import run_in_threads

THRESHOLDS: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [2], "tau": 0.5}
COUNTS: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [2], "merge_to": 0.6}


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


WAYS: dict[str, Any] = {
    "eager": {},
    "whole": {"fullgraph": True, "dynamic": True},
    "compiled": {"dynamic": True},
}


@torch.no_grad()
@pytest.mark.parametrize(
    ("first", "second", "settings"),
    [
        ("eager", "eager", THRESHOLDS),
        ("eager", "whole", THRESHOLDS),
        ("whole", "eager", COUNTS),
        ("compiled", "whole", COUNTS),
        ("whole", "compiled", THRESHOLDS),
    ],
    ids=str,
)
def test_the_newest_pass_is_told_of(first, second, settings):
    """Two batches run in turns, each in its way."""
    model, images = apply_algm(build("ViT", depth=2), **settings), (photo(batch=2), photo(batch=3, seed=1))
    expected = []
    for image in images:
        fresh = copy.deepcopy(model)
        fresh(image)
        expected.append(facts_of(fresh))
    runs = [torch.compile(model, backend="eager", **WAYS[way]) if WAYS[way] else model for way in (first, second)]
    for _ in range(2):
        for run, image, wanted in zip(runs, images, expected, strict=True):
            run(image)
            assert facts_of(model) == wanted


@torch.no_grad()
def test_two_compiled_shapes_in_turn():
    model = apply_algm(build("ViT", depth=2, dynamic_img_size=True), **COUNTS)
    run = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    for _ in range(3):
        for grid in ((6, 5), (8, 3)):
            run(photo(grid=grid))
            assert f"grid {grid[0]}x{grid[1]}" in str(model.algm)
            assert model.algm.token_map.labels.shape[1] == 1 + grid[0] * grid[1]


@torch.no_grad()
def test_each_thread_is_told_of_its_own_also_after_a_compiled_pass():
    model = apply_algm(build("ViT", depth=2, dynamic_img_size=True), **COUNTS)
    torch.compile(model, backend="eager", fullgraph=True)(photo())

    def job(grid):
        def run():
            model(photo(grid=grid))
            return model.algm.token_map.labels.shape[1]

        return run

    for grid, found in zip([(6, 5), (8, 3)], run_in_threads([job((6, 5)), job((8, 3))]), strict=True):
        assert set(found) == {1 + grid[0] * grid[1]}


@torch.no_grad()
def test_a_thread_without_a_pass_is_told_of_the_newest_of_all():
    model = apply_algm(build("ViT", depth=2), **THRESHOLDS)
    model(photo())
    expected = str(model.algm)
    assert run_in_threads([lambda: str(model.algm)], times=1) == [[expected]]


class Loop(nn.Module):
    """Runs the blocks in a method that ALGM does not know."""

    def __init__(self, trunk):
        super().__init__()
        self.trunk = trunk

    def forward(self, x):
        x = self.trunk._pos_embed(self.trunk.patch_embed(x))
        for block in self.trunk.blocks:
            x = block(x)
        return x


@torch.no_grad()
@pytest.mark.parametrize(
    ("settings", "known", "strict"),
    [(THRESHOLDS, True, False), (COUNTS, False, False), (COUNTS, True, True), (COUNTS, False, True)],
    ids=str,
)
def test_an_export_leaves_nothing_behind(settings, known, strict):
    trunk = build("ViT", depth=2).requires_grad_(False)
    model: Any = apply_algm(trunk if known else Loop(trunk), **settings)
    torch.export.export(model, (photo(batch=1),), strict=strict)
    assert "no forward pass yet" in str(model.algm)
    assert len(model.algm.runtime.exports) == 0
    with pytest.raises(RuntimeError, match=r"cannot trace .* patch embedding did not run before"):
        trunk.blocks[1](torch.randn(1, 31, 64))
    model(photo())
    expected = facts_of(model)
    torch.export.export(model, (photo(batch=1, seed=3),), strict=strict)
    assert facts_of(model) == expected
