"""A forward pass that goes past the patch says so, once; and what cannot carry merges is refused by name."""

import copy
import pickle
import warnings

import pytest
import torch
from models import build, photo
from torch import nn

from algm_patch import apply_algm, calibrate, remove_algm, tune
from algm_patch.functional import TokenMap, clap, gbm

SETTINGS = {"clap_layer": 1, "gbm_layers": [3], "tau": 0.5}
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
    """The warnings of ALGM in so many runs."""
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        for _ in range(times):
            run()
    return [str(warning.message) for warning in caught if NOTHING_MERGED in str(warning.message)]


def test_blocks_that_are_computed_by_their_parts():
    model, image = ByParts(build("ViT")).eval(), photo()
    with torch.no_grad():
        expected = model(image)
    apply_algm(model, **SETTINGS)
    (message,) = warned(lambda: model(image), times=3)
    assert "patch embedding of VisionTransformer ran, but none of its blocks did" in message
    assert "as block(x)" in message
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
    """The module that was patched is never called itself."""
    model = ByParts(build("ViT")).eval()
    apply_algm(model.trunk, **SETTINGS)
    assert len(warned(lambda: model(photo(batch=1)), times=100)) == 1


class Trainer(nn.Module):
    """Runs its network in a step of its own, as Lightning does: its forward is never called."""

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
        setattr(model.algm, "tau", 2.0),
        setattr(model.algm, "gbm_tau", 2.0),
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
        tune(model, image, budget="20s")
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


# -- what keeps the merges of one image, or leaves them out


@pytest.mark.parametrize("settings", [SETTINGS, {"gbm_layers": [3], "merge_to": 0.6}], ids=["thresholds", "counts"])
@pytest.mark.parametrize("ran_before", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tracing_and_scripting_are_refused_by_name(settings, ran_before):
    model, image = apply_algm(build("ViT"), settings=settings), photo()
    with torch.no_grad():
        expected = model(image)
    if not ran_before:
        model.algm._forget()
    described, hooks = str(model.algm), [len(part._forward_hooks) for part in model.modules()]
    x = model._pos_embed(model.patch_embed(image)).detach() if ran_before else image
    for refused, traced in (
        (r"torch\.jit\.trace .*torch\.export\.export", lambda: torch.jit.trace(model, (image,))),
        (r"torch\.jit\.trace .*torch\.export\.export", lambda: torch.jit.trace(model.blocks[2], (x,))),
        (r"torch\.jit\.trace .*dynamo=True", lambda: torch.jit.trace(model.patch_embed.proj, (image,))),
        (r"torch\.jit\.script .*torch\.export", lambda: torch.jit.script(model)),
        (r"torch\.jit\.script .*torch\.export", lambda: torch.jit.script(model.blocks[0])),
    ):
        with pytest.raises(RuntimeError, match=refused):
            traced()
        assert ran_before or str(model.algm) == described
        assert [len(part._forward_hooks) for part in model.modules()] == hooks
    with torch.no_grad():
        assert torch.equal(model(image), expected)
        traced = torch.jit.trace(remove_algm(model), (image,))
        torch.testing.assert_close(traced(image), model(image))
    torch.jit.script(model)


# -- hooks on every module, empty batches, calls that are wrong


def everywhere(kind, hook):
    modules = torch.nn.modules.module
    return {
        "forward": modules.register_module_forward_hook,
        "forward pre": modules.register_module_forward_pre_hook,
        "backward": modules.register_module_full_backward_hook,
        "backward pre": modules.register_module_full_backward_pre_hook,
    }[kind](hook)


@pytest.mark.parametrize("kind", ["forward", "forward pre", "backward", "backward pre"])
@pytest.mark.parametrize("batch", ["image", "min"])
def test_hooks_on_every_module_see_the_full_grid_at_every_block(kind, batch):
    model = apply_algm(build("ViT"), **SETTINGS, batch=batch)
    expected, seen = model.forward_features(photo()), []

    def see(module, *tensors):
        if module in set(model.blocks):
            seen.extend(x.shape for given in tensors for x in (given if isinstance(given, tuple) else (given,)))

    with everywhere(kind, see):
        found = model.forward_features(photo())
        found.sum().backward()
    assert torch.equal(found, expected)
    assert len(seen) >= 5
    assert set(seen) == {expected.shape}
    assert model.algm.tokens_per_layer[-1] < 31


def test_what_a_hook_on_every_module_changes_is_kept():
    model = apply_algm(build("ViT"), **SETTINGS)
    expected = model.forward_features(photo())
    with everywhere("forward", lambda module, _, output: 2 * output if module is model.blocks[3] else None):
        assert not torch.equal(model.forward_features(photo()), expected)


def test_counting_operations_keeps_the_tokens_merged():
    """torch's counter hooks every module, and looks at no token."""
    from torch.utils.flop_counter import FlopCounterMode

    model = apply_algm(build("ViT"), **SETTINGS)
    with torch.no_grad(), FlopCounterMode(display=False):
        model(photo())
    assert "full grid given back after layer 5" in str(model.algm)


EMPTY = {
    "thresholds": SETTINGS,
    "auto": {"gbm_layers": [3]},
    "paper": {"gbm_layers": [3], "tau": "paper", "gbm_tau": "tau"},
    "counts": {"gbm_layers": [3], "merge_to": 0.6},
    "pick": {**SETTINGS, "reduce": "pick", "compare": "key", "place": "after_mlp"},
}


@pytest.mark.parametrize("settings", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("family", ["ViT", "average pooling", "relative positions"])
def test_an_empty_batch(family, mode, settings):
    model = getattr(build(family), mode)()
    image = photo(family)[:0].requires_grad_()
    expected = model(image)
    apply_algm(model, settings=settings)
    found = model(image)
    assert found.shape == expected.shape
    found.sum().backward()
    assert model.algm.tokens_per_layer == [model.algm.token_map.labels.shape[1]] * 5
    assert model.algm.token_map.sizes.shape[0] == 0
    assert "batch 0" in str(model.algm)
    assert "batch 0" in model.algm._repr_html_()


def test_empty_batches_are_passed_over_by_calibrate_and_tune():
    model = apply_algm(build("ViT"), gbm_layers=[3])
    expected = calibrate(model, photo())
    assert calibrate(model, [photo()[:0], photo(), photo()[:0]]) == expected
    with pytest.raises(ValueError, match=r"no .* window in 0 batches"):
        calibrate(model, photo()[:0])
    with pytest.raises(ValueError, match="tune got no images"):
        tune(model, photo()[:0])


@pytest.mark.parametrize("batch", ["image", "min"])
def test_the_functions_take_an_empty_batch(batch):
    merged, token_map = clap(torch.randn(0, 31, 8), (6, 5), "auto", batch=batch)
    assert merged.shape == (0, 31, 8)
    merged, token_map = gbm(merged, token_map, layer=2, batch=batch)
    assert merged.shape == (0, 31, 8)
    assert token_map.unmerge(merged).shape == (0, 31, 8)


def test_a_block_without_tokens_answers_as_the_class_does():
    plain, model = build("ViT"), apply_algm(build("ViT"))
    for call in (lambda block: block(), lambda block: block(attn_mask=None)):
        with pytest.raises(TypeError) as expected:
            call(plain.blocks[0])
        with pytest.raises(TypeError) as found:
            call(model.blocks[0])
        assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_whole_numbers_are_not_averaged(dtype):
    token_map = TokenMap(torch.tensor([[0, 0, 1]]), torch.tensor([[2.0, 1.0]]))
    x = torch.tensor([[0, 1, 1]]).to(dtype)
    with pytest.raises(ValueError, match=r"cannot hold a mean.*x\.float\(\).*TokenMap\.take"):
        token_map.merge(x)
    assert token_map.merge(x.float()).tolist() == [[0.5, 1.0]]
    assert token_map.take(x).tolist() == [[0, 1]]
