"""A full grid that waits to be read is, for whatever reads it, the full grid."""

import copy
import io
import pickle
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from algm_patch import apply_algm
from algm_patch.patching.tracker import memory_of
from algm_patch.patching.unread_grid import UnreadGrid
from tests.support.batches import unlike
from tests.support.loops import at_every_block
from tests.support.models import build, photo

SETTINGS: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [3], "tau": 0.5}
MODES = (torch.no_grad, torch.inference_mode)


class Identity(torch.autograd.Function):
    """Returns its input itself."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def saved(x):
    file = io.BytesIO()
    torch.save({"x": x}, file)
    file.seek(0)
    return torch.load(file)["x"]


def in_a_thread(x):
    found = []
    thread = threading.Thread(target=lambda: found.append(x.numpy()))
    thread.start()
    thread.join()
    return found[0]


def put_into(x):
    other = torch.zeros(2, *x.shape)
    other[1] = x
    return other


def weakly_held(x):
    """Read it while something holds a weak reference: it cannot become another object."""
    held = weakref.ref(x)
    result = x + 1
    x.mul_(2)
    x.transpose_(1, 2)
    return result, x.shape, x, held() is x


USES = {
    "a sum": lambda x: x + 1,
    "with itself": lambda x: x @ x.mT,
    "a slice": lambda x: x[:, 1:, ::2],
    "a list": lambda x: torch.cat([x, x], 1),
    "a module": lambda x: nn.LayerNorm(64)(x),
    "a scripted module": lambda x: torch.jit.script(nn.LayerNorm(64))(x),
    "its form": lambda x: (x.shape, x.size(1), x.ndim, x.dtype, x.device, x.numel(), len(x), x.stride()),
    "numpy": lambda x: x.numpy(),
    "numpy's copy": np.asarray,
    "dlpack": torch.utils.dlpack.from_dlpack,
    "its bytes": lambda x: x.untyped_storage().nbytes(),
    "its pointer": lambda x: x.data_ptr() == x.view(-1).data_ptr() != 0,
    "text": str,
    "a deep copy": copy.deepcopy,
    "a pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "a file": saved,
    "a number": lambda x: (x.sum().item(), bool((x == x).all()), x[0, 0, 0].tolist()),
    "into another": put_into,
    "out=": lambda x: torch.add(x, 1, out=torch.empty(2, 31, 64)),
    "a function's input": lambda x: Identity.apply(x) * 2,
    "checkpointing": lambda x: checkpoint(torch.sin, x, use_reentrant=True),
    "vmap": lambda x: torch.vmap(lambda one: one * 2)(x),
    "a parameter": lambda x: nn.Parameter(x, requires_grad=False) * 2,
    "a buffer": lambda x: nn.BatchNorm1d(31).register_buffer("x", x) or x,
    "operators": lambda x: torch.ops.aten.add.Tensor(x, x),
    "C++": lambda x: torch._C._functorch.get_unwrapped(torch._C._functorch._add_batch_dim(x, 0, 1)) + 0,
    "another dtype": lambda x: x.to(torch.bfloat16),
    "the same device": lambda x: x.to("cpu"),
    "counting": lambda x: FlopCounterMode(display=False).__enter__().__exit__(None, None, None) or x.relu(),
    "in place": lambda x: (x.mul_(2), x),
    "in place, by an operator": lambda x: x.__iadd__(1),
    "its form in place": lambda x: (x.transpose_(1, 2), x.shape, x),
    "through data": lambda x: (x.data.zero_(), x),
    "a thread": in_a_thread,
    "held weakly": weakly_held,
    "a gradient later": lambda x: (x.clone().requires_grad_() * 2).requires_grad,
}


def grid_after_three_blocks(images):
    """Return the model and what its third block left."""
    model = apply_algm(build("ViT"), **SETTINGS)
    x = model._pos_embed(model.patch_embed(images))
    for block in model.blocks[:3]:
        x = block(x)
    return model, x


def plain(result: Any) -> Any:
    """Return a result with arrays as tensors."""
    if isinstance(result, tuple):
        return tuple(map(plain, result))
    return torch.from_numpy(result) if isinstance(result, np.ndarray) else result


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_every_use_sees_the_full_grid(use, mode):
    with mode():
        with at_every_block():
            _, made_at_once = grid_after_three_blocks(photo())
        _, other_grid = grid_after_three_blocks(photo())
        ordinary = other_grid.read()
        torch.testing.assert_close(ordinary, made_at_once)  # which the next block averages, to rounding
        _, grid = grid_after_three_blocks(photo())
        assert isinstance(grid, UnreadGrid)
        found, expected = plain(use(grid)), plain(use(ordinary))
        for one, other in zip(
            *(part if isinstance(part, tuple) else (part,) for part in (found, expected)), strict=True
        ):
            assert torch.equal(one, other) if isinstance(other, torch.Tensor) else one == other
        assert torch.equal(grid, ordinary)


@pytest.mark.parametrize("mode", MODES)
def test_what_was_read_is_an_ordinary_tensor(mode):
    with mode():
        _, grid = grid_after_three_blocks(photo())
        memory = memory_of(grid.tokens)
        alias = grid
        assert (grid + 1).shape == grid.shape
    assert type(grid) is torch.Tensor
    assert alias is grid
    assert vars(grid) == {}
    assert grid.is_inference() == (mode is torch.inference_mode)
    assert memory_of(grid) == memory


@torch.no_grad()
def test_an_unread_grid_holds_no_full_grid():
    model, grid = grid_after_three_blocks(unlike(photo()))
    tokens, lost = (x for x in vars(grid).values() if isinstance(x, torch.Tensor))
    assert lost is model.algm.last_pass.blocks[2].lost  # shared with the pass, which holds one
    assert [layer for layer, block in model.algm.last_pass.blocks.items() if block.lost is not None] == [2]
    number = int((model.algm.token_map.sizes > 0).sum())
    assert number < 0.8 * grid.shape[0] * grid.shape[1]
    assert tokens.untyped_storage().nbytes() == number * 64 * 4


@torch.no_grad()
def test_code_that_looks_for_numbers_behind_torchs_back_finds_those_or_is_refused():
    """The function under ``torch.utils.dlpack`` asks the tensor itself; that of older torch copies it first."""
    _, grid = grid_after_three_blocks(photo())
    try:
        found = torch._C._from_dlpack(torch._C._to_dlpack(grid))
    except RuntimeError as error:
        assert "Cannot access data pointer" in str(error)  # noqa: PT017
    else:
        assert torch.equal(found, grid)


def outputs(model, images, segments=None):
    """Run the blocks one by one, or in segments that are recomputed in the backward pass."""
    x = model._pos_embed(model.patch_embed(images))
    if segments is None:
        for block in model.blocks:
            x = block(x)
        return x
    for start, stop in segments:
        x = checkpoint(lambda x, part: part(x), x, nn.Sequential(*model.blocks[start:stop]), use_reentrant=True)
    return x


@pytest.mark.parametrize("segments", [[(0, 5)], [(0, 2), (2, 5)], [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_go_through_reentrant_checkpointing(segments, training):
    """Its blocks run without gradients first, and their outputs have gradients all the same."""
    model = apply_algm(build("ViT").train(training), **SETTINGS)
    gradients = []
    for chosen in (None, segments):
        images = photo().requires_grad_()
        outputs(model, images, chosen).square().sum().backward()
        gradients.append([images.grad, *(p.grad.clone() for p in model.blocks.parameters())])
        model.zero_grad()
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_no_grid_waits_under_transforms_and_modes():
    model = apply_algm(build("AugReg, no fused attention"), clap_layer=1, gbm_layers=[3], merge_to=0.6)
    tangent = torch.randn_like(photo())
    with torch.no_grad():
        expected = outputs(model, photo())
        found = torch.func.jvp(lambda x: outputs(model, x), (photo(),), (tangent,))[0]
        torch.testing.assert_close(found, expected)
        with FlopCounterMode(display=False):
            # Grids that are made between blocks, and averaged by the next, differ by rounding.
            torch.testing.assert_close(outputs(model, photo()), expected)


@torch.no_grad()
def test_frozen_models_hand_their_tokens_on_with_gradients_enabled():
    model = apply_algm(build("ViT").requires_grad_(False), **SETTINGS)
    with torch.enable_grad():
        outputs(model, photo())
    assert "nothing read the full grid" in str(model.algm)
