"""A forward pass that goes past the patch warns, once."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from algm_patch import apply_algm, calibrate, remove_algm, tune
from tests.support.models import build, photo

SETTINGS: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [3], "tau": 0.5}
NOTHING_MERGED = "so nothing merged"


class ByParts(nn.Module):
    """Computes some blocks by their parts, and calls the others."""

    def __init__(self, trunk, parts=range(5)):
        super().__init__()
        self.trunk, self.parts = trunk, set(parts)

    def forward(self, x):
        x = self.trunk._pos_embed(self.trunk.patch_embed(x))
        for layer, block in enumerate(self.trunk.blocks):
            if layer in self.parts:
                x = x + block.ls1(block.attn(block.norm1(x)))
                x = x + block.ls2(block.mlp(block.norm2(x)))
            else:
                x = block(x)
        return self.trunk.norm(x)


def warned(run, times=2):
    """Return the warnings of ALGM in this many runs."""
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        for _ in range(times):
            run()
    return [str(warning.message) for warning in caught if NOTHING_MERGED in str(warning.message)]


def test_blocks_that_are_computed_by_their_parts():
    model: Any = ByParts(build("ViT")).eval()
    image = photo()
    with torch.no_grad():
        expected = model(image)
    apply_algm(model, **SETTINGS)
    (message,) = warned(lambda: model(image), times=3)
    assert "patch embedding of VisionTransformer ran, but none of its blocks did" in message
    assert "in ByParts.forward or what it calls, goes past the patch: let it call the block, as block(x)" in message
    assert "the patch embedding ran, but none of the blocks" in str(model.algm)
    assert "the patch embedding ran, but none of the blocks" in model.algm._repr_html_()
    with pytest.raises(RuntimeError, match="ran, but none of its blocks did"):
        _ = model.algm.token_map
    with torch.no_grad():
        assert torch.equal(model(image), expected)
    assert len(warned(lambda: apply_algm(model, **SETTINGS)(image), times=1)) == 1  # newly patched, it is told again


def test_an_older_pass_is_not_told_of_in_place_of_one_that_was_bypassed():
    model, image = ByParts(build("ViT"), []).eval(), photo()
    apply_algm(model, **SETTINGS)
    assert warned(lambda: model(image)) == []
    assert "tokens after each layer" in str(model.algm)
    model.parts = set(range(5))
    assert len(warned(lambda: model(image))) == 1
    assert "none of the blocks" in str(model.algm)


@pytest.mark.parametrize(
    ("parts", "missing"), [([0], "1"), ([2], "3"), ([2, 3, 4], "3"), ([0, 2], "1, 3"), ([1], None), ([3, 4], None)]
)
def test_some_blocks_that_are_computed_by_their_parts(parts, missing):
    model = apply_algm(ByParts(build("ViT"), parts).eval(), **SETTINGS)
    found = warned(lambda: model(photo()))
    assert len(found) == (missing is not None)
    assert missing is None or f"without block {missing}, so nothing merged there" in found[0]


def skip_in_instance(model):
    model.blocks[0].forward = lambda x, **_: x


def run_no_block(model):
    model.forward_features = lambda x, **_: model._pos_embed(model.patch_embed(x))


@pytest.mark.parametrize("change", [skip_in_instance, run_no_block])
@pytest.mark.parametrize("whole", [False, True])
def test_a_forward_of_the_instance_that_skips_blocks(change, whole):
    model = build("ViT")
    outer = apply_algm(nn.Sequential(model) if whole else model, **SETTINGS)
    change(model)
    assert len(warned(lambda: outer(photo()))) == 1


def test_a_trunk_whose_outer_model_goes_past_it():
    """Nothing calls the module that was patched."""
    model = ByParts(build("ViT")).eval()
    apply_algm(model.trunk, **SETTINGS)
    assert len(warned(lambda: model(photo(batch=1)), times=100)) == 1


class Trainer(nn.Module):
    """Runs its network in a method of its own, as Lightning does. Nothing calls its forward."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def step(self, images):
        return self.net(images)


@pytest.mark.parametrize("wrap", [nn.Sequential, Trainer, lambda net: Trainer(nn.Sequential(net))])
def test_the_module_that_goes_past_the_blocks_may_stand_anywhere_around_the_trunk(wrap):
    net = ByParts(build("ViT")).eval()
    model = apply_algm(wrap(net), **SETTINGS)
    assert len(warned(lambda: getattr(model, "step", model)(photo()))) == 1
    remove_algm(model)
    assert type(net) is ByParts


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_say_so_too(copied):
    model = apply_algm(ByParts(build("ViT")).eval(), **SETTINGS)
    other = copied(model)
    assert len(warned(lambda: other(photo()))) == len(warned(lambda: model(photo()))) == 1
    assert type(other) is type(model)
    assert type(remove_algm(other)) is ByParts


QUIET = {
    "a forward pass": lambda model: model(photo()),
    "a recomputed one": lambda model: torch.utils.checkpoint.checkpoint(
        model, photo().requires_grad_(), use_reentrant=False
    ),
    "nothing is similar enough": lambda model: (setattr(model.algm, "tau", 1.0), model(photo())),
    "merging is off": lambda model: (
        setattr(model.algm, "tau", 1.05),
        setattr(model.algm, "gbm_tau", 1.05),
        model(photo()),
    ),
    "no layer merges": lambda model: (
        setattr(model.algm, "gbm_layers", []),
        setattr(model.algm, "clap_layer", None),
        ByParts(model)(photo()),
        model(photo()),
    ),
    "an early end behind the first merge": lambda model: model.forward_intermediates(
        photo(), indices=[1], stop_early=True, intermediates_only=True
    ),
    "the patch embedding alone": lambda model: model.patch_embed(photo()),
    "crops that go through the blocks together": lambda model: model.blocks(
        torch.cat([model._pos_embed(model.patch_embed(photo(seed=seed))) for seed in range(12)])
    ),
    "a calibration": lambda model: calibrate(model, photo()),
    "an empty batch": lambda model: model(photo()[:0]),
}


@pytest.mark.parametrize("use", QUIET.values(), ids=QUIET)
@pytest.mark.parametrize("whole", [False, True])
def test_it_is_quiet_otherwise(use, whole):
    model = build("ViT")
    apply_algm(nn.Sequential(model) if whole else model, **SETTINGS)
    assert warned(lambda: use(model)) == []


def test_an_error_in_a_block_is_no_bypass():
    model = apply_algm(build("ViT"), **SETTINGS)
    hook = model.blocks[1].mlp.register_forward_hook(lambda *_: 1 / 0)

    def failing():
        with pytest.raises(ZeroDivisionError):
            model(photo())

    assert warned(failing) == []
    hook.remove()
    assert warned(lambda: model(photo())) == []


def test_an_end_before_the_first_merge_is_told():
    model = apply_algm(build("ViT"), clap_layer=3, gbm_layers=[4], tau=0.5)
    (message,) = warned(
        lambda: model.forward_intermediates(photo(), indices=[1], stop_early=True, intermediates_only=True)
    )
    assert "ended a forward pass after block 2, before any block that merges" in message
    assert "clap_layer or gbm_layers to blocks up to there" in message
    assert "calls the parts of a block" not in message


def test_tune_names_it_and_leaves_the_model_as_it_was():
    model, image = ByParts(build("ViT")).eval(), photo()
    with pytest.raises(RuntimeError, match="none of its blocks did"):
        tune(model, image, budget="2min")
    assert not hasattr(model, "algm")
    assert type(model) is ByParts


@torch.no_grad()
@pytest.mark.parametrize("options", [{"fullgraph": True, "dynamic": True}, {}], ids=["whole", "compiled"])
def test_compiled_it_says_so_when_asked(options):
    torch._dynamo.reset()
    model = apply_algm(ByParts(build("ViT", depth=3), range(3)).eval(), **SETTINGS)
    run = torch.compile(model, backend="eager", **options)
    run(photo())
    assert "none of the blocks" in str(model.algm)
