"""Hooks on every module see the full grid, but for those that look at no token."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from algm_patch import apply_algm
from tests.support.models import build, photo

SETTINGS: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [3], "tau": 0.5}


def everywhere(kind, hook):
    modules = torch.nn.modules.module
    register: dict[str, Callable[..., Any]] = {
        "forward": modules.register_module_forward_hook,
        "forward pre": modules.register_module_forward_pre_hook,
        "backward": modules.register_module_full_backward_hook,
        "backward pre": modules.register_module_full_backward_pre_hook,
    }
    return register[kind](hook)


@pytest.mark.parametrize("kind", ["forward", "forward pre", "backward", "backward pre"])
@pytest.mark.parametrize("batch", ["image", "min"])
def test_hooks_on_every_module_see_the_full_grid_at_every_block(kind, batch):
    model = apply_algm(build("ViT"), **SETTINGS, batch=batch)
    expected = model.forward_features(photo())
    seen: list[torch.Size] = []

    def see(module, *tensors):
        if module in set(model.blocks):
            seen.extend(x.shape for given in tensors for x in (given if isinstance(given, tuple) else (given,)))

    with everywhere(kind, see):
        found = model.forward_features(photo())
        found.sum().backward()
    torch.testing.assert_close(found, expected)  # the means of restored grids are merged tokens to rounding
    assert len(seen) >= 5
    assert set(seen) == {expected.shape}
    assert model.algm.tokens_per_layer[-1] < 31


def test_what_a_hook_on_every_module_changes_is_kept():
    model = apply_algm(build("ViT"), **SETTINGS)
    expected = model.forward_features(photo())
    with everywhere("forward", lambda module, _, output: 2 * output if module is model.blocks[3] else None):
        assert not torch.equal(model.forward_features(photo()), expected)


def test_counting_operations_keeps_the_tokens_merged():
    """torch's counter hooks every module, and reads no token."""
    model = apply_algm(build("ViT"), **SETTINGS)
    with torch.no_grad(), FlopCounterMode(display=False):
        model(photo())
    assert "full grid given back after layer 5" in str(model.algm)
