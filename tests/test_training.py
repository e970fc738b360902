"""Gradients, recomputation, copies, threads."""

import copy
import gc
import io
import pickle
import threading
import weakref
from unittest.mock import patch

import pytest
import timm
import torch
from models import build, photo, read_every_block
from safetensors.torch import load_file, save_file
from timm.layers import set_reentrant_ckpt
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from algm_patch import apply_algm, remove_algm
from algm_patch.adapters.registry import adapter_of
from algm_patch.core.layer_tokens import LayerTokens
from algm_patch.core.matching import best_matches, window_similarity
from algm_patch.functional import TokenMap, clap, gbm
from algm_patch.patching.halves import attention_half

SETTINGS = {"clap_layer": 2, "gbm_layers": [3, 4], "tau": 0.5}
NOTHING = {**SETTINGS, "tau": 2.0, "gbm_tau": 2.0}
EVERYTHING = {**SETTINGS, "tau": -1.0, "gbm_tau": -1.0}


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(
            found[name], expected[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance
        )


def rebuilt_forward(model, image, plans):
    """The same merges as products with dense matrices, in plain autograd, on the unpatched model."""
    x = model._pos_embed(model.patch_embed(image))
    back = torch.eye(x.shape[1]).expand(len(x), -1, -1)  # from merged tokens to original ones
    sizes = torch.ones(x.shape[:2])
    for layer, block in enumerate(model.blocks):
        bias = sizes.log()[:, None, None]
        x = x + block.attn(block.norm1(x), attn_mask=bias.expand(-1, 4, x.shape[1], -1))
        for plan in plans.get(layer, []):
            member = torch.nn.functional.one_hot(plan.step.labels, plan.step.sizes.shape[1]).float()
            x = (
                member * (sizes / (member.mT @ sizes[..., None])[..., 0].gather(1, plan.step.labels))[..., None]
            ).mT @ x
            back = back @ member
            sizes = (member.mT @ sizes[..., None])[..., 0]
        x = x + block.mlp(block.norm2(x))
    return model.norm(back @ x)


@pytest.mark.parametrize("batch", [1, 3])
def test_gradients_are_those_of_a_plain_rebuild_of_the_merges(batch):
    model, image = build("ViT").train(), photo(batch=batch)
    weights = torch.randn(batch, 31, 64)
    apply_algm(model, **SETTINGS)
    output = model.forward_features(image)
    found = gradients(model, (output * weights).sum())
    plans = {layer: list(step.plans.values()) for layer, step in model.algm._past().steps.items()}
    assert [len(plans[layer]) for layer in range(5)] == [0, 1, 1, 1, 0]
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[2] < model.algm.tokens_per_layer[1] < 31
    remove_algm(model)
    expected_output = rebuilt_forward(model, image, plans)
    torch.testing.assert_close(output, expected_output, atol=1e-5, rtol=1e-5)
    assert_same(found, gradients(model, (expected_output * weights).sum()), atol=1e-4, rtol=1e-4)
    assert len(found) == len([*model.blocks.named_parameters()]) + 6  # none unused: embedding (4) and norm (2) too


def test_gradcheck_of_a_merge_and_its_way_back():
    token_map = TokenMap(torch.tensor([[0, 1, 0, 2, 0]]), torch.tensor([[5.0, 1.0, 1.0]], dtype=torch.float64))
    sizes = torch.tensor([[1.0, 1.0, 3.0, 1.0, 1.0]], dtype=torch.float64)
    x = torch.randn(1, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: token_map.unmerge(token_map.merge(x, sizes)), x)
    assert torch.autograd.gradcheck(lambda x: gbm(x, TokenMap.identity(1, 5), layer=1, tau=0.0)[0], x)


@pytest.mark.parametrize("batch", ["min", "image"])
def test_gradcheck_of_both_merges_and_their_way_back(batch):
    alike = torch.tensor([[13], [6]]) > torch.arange(13)  # both windows of the first image, one of the second
    x = (torch.randn(2, 13, 3, dtype=torch.float64) + 5 * alike[..., None]).requires_grad_()

    def merged(x):
        once, windows = clap(x, (4, 3), 0.8, batch=batch)
        return once, windows, *gbm(once, windows, layer=2, tau=0.5, batch=batch)

    _, windows, _, token_map = merged(x)
    assert (windows.packing is not None) == (token_map.packing is not None) == (batch == "image")
    assert token_map.sizes.shape[1] < windows.sizes.shape[1] < 13
    assert torch.autograd.gradcheck(lambda x: merged(x)[::2], x)
    assert torch.autograd.gradcheck(lambda x: token_map.unmerge(merged(x)[2]), x)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_gradcheck_of_proportional_attention_to_images_of_different_lengths(mode, fused):
    """Padded, packed, or one after the other."""
    block = getattr(timm.models.vision_transformer.Block(8, 2, qkv_bias=True).double(), mode)()
    block.attn.fused_attn = fused
    token_map = TokenMap.from_leaders(
        torch.tensor([[0, 1, 1, 3, 3], [0, 1, 1, 1, 1]]), torch.ones(2, 5, dtype=torch.float64), packed=True
    )
    tokens = LayerTokens(token_map, token_map.key_bias, num_prefix_tokens=1)
    assert token_map.packing.lengths == (3, 2)
    x = torch.randn(1, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: attention_half(adapter_of(block), "token", block, x, tokens)[0], x)


@pytest.mark.parametrize("every_block", [False, True])
@pytest.mark.parametrize("batch", ["min", "image"])
def test_gradcheck_of_a_whole_model(batch, every_block):
    model, image = build("ViT").double().train(), photo(batch=3).double().requires_grad_()
    apply_algm(model, **SETTINGS, batch=batch)
    if every_block:
        read_every_block(model)
    assert torch.autograd.gradcheck(model.forward_features, image, fast_mode=True)
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[1] < 31


TIES = {
    "identical": lambda: torch.ones(2, 13, 4),
    "zero": lambda: torch.zeros(2, 13, 4),
    "one image identical, one not": lambda: torch.cat([torch.ones(1, 13, 4), torch.randn(1, 13, 4)]),
    "no two alike": lambda: torch.randn(2, 13, 4),
}


@pytest.mark.parametrize("tokens", TIES.values(), ids=TIES)
@pytest.mark.parametrize("tau", [-1.0, "auto", 1.0, 2.0])
@pytest.mark.parametrize("batch", ["min", "image"])
def test_merged_and_unmerged_every_token_counts_once(tokens, tau, batch):
    """A group's copies sum to its members: the gradient of the sum is one, also at ties."""
    x = tokens().requires_grad_()
    once, windows = clap(x, (4, 3), tau, batch=batch)
    twice, token_map = gbm(once, windows, layer=2, tau="adaptive" if tau == "auto" else tau, batch=batch)
    (gradient,) = torch.autograd.grad(token_map.unmerge(twice).sum(), x)
    torch.testing.assert_close(gradient, torch.ones_like(x))
    assert windows.sizes.shape[1] < 13 or tau not in (-1.0, "auto")
    assert token_map.sizes.shape[1] == 13 or tau != 2.0


def test_what_is_just_as_similar_as_the_threshold_merges():
    x = torch.randn(1, 13, 4, requires_grad=True)
    windows = window_similarity(x.detach()[:, 1:], (4, 3), (2, 2)).flatten()
    merged, token_map = clap(x, (4, 3), windows.sort().values[1].item())
    assert merged.shape[1] == 10
    (gradient,) = torch.autograd.grad(token_map.unmerge(merged).sum(), x)
    torch.testing.assert_close(gradient, torch.ones_like(x))
    proposals = best_matches(x.detach(), 1)[0].flatten().sort(descending=True).values
    merged, token_map = gbm(x, TokenMap.identity(1, 13), layer=1, tau=proposals[2].item())
    assert merged.shape[1] == 10
    (gradient,) = torch.autograd.grad(token_map.unmerge(merged).sum(), x)
    torch.testing.assert_close(gradient, torch.ones_like(x))


@pytest.mark.parametrize("zero", [False, True], ids=["identical", "zero"])
@pytest.mark.parametrize("settings", [NOTHING, EVERYTHING, {**SETTINGS, "tau": "auto"}])
@pytest.mark.parametrize("batch", ["min", "image"])
def test_merging_patches_that_are_the_same_changes_no_gradient(zero, settings, batch):
    model, image = build("ViT").train(), torch.zeros(2, 3, 96, 80)
    with torch.no_grad():
        model.pos_embed[:, 1:] = 0
        model.patch_embed.proj.bias.mul_(not zero)

    def loss():
        return model.forward_features(image).mul(torch.linspace(-1, 1, 64)).sum()

    expected = gradients(model, loss())
    apply_algm(model, **settings, batch=batch)
    found = gradients(model, loss())
    assert (model.algm.tokens_per_layer[-1] < 31) == (settings is not NOTHING)
    assert_same(found, expected, atol=1e-4, rtol=1e-4)


def checkpointed(model, how):
    """A forward that recomputes in the backward pass."""
    if how == "whole model":
        return lambda image: checkpoint(model.forward_features, image, use_reentrant=False)
    if how == "halves of the model":

        def run(image):
            x = model._pos_embed(model.patch_embed(image))
            for part in (model.blocks[:3], model.blocks[3:]):
                x = checkpoint(part, x, use_reentrant=False)
            return model.norm(x)

        return run
    model.set_grad_checkpointing()
    if how == "all intermediates":
        return lambda image: sum(model.forward_intermediates(image, output_fmt="NLC", intermediates_only=True))
    return model.forward_features


@pytest.mark.parametrize(
    "how", ["blocks", "blocks, reentrant", "whole model", "halves of the model", "all intermediates"]
)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_recomputation_replays_each_forwards_own_merges(how, mode):
    """Two forward passes wait for one backward pass, and a third comes between."""
    model = getattr(build("ViT", drop_path_rate=0.3, proj_drop_rate=0.1), mode)()
    apply_algm(model, **SETTINGS)
    first, second = photo(seed=1), photo(seed=2)

    def loss(forward):
        torch.manual_seed(0)
        total = forward(first).square().mean() + forward(second).pow(3).mean()
        with torch.no_grad():
            model.forward_features(photo(seed=3, batch=1))
        return total

    plain = model.forward_features
    if how == "all intermediates":
        plain = lambda image: sum(model.forward_intermediates(image, output_fmt="NLC", intermediates_only=True))  # noqa: E731
    expected = gradients(model, loss(plain))
    set_reentrant_ckpt("reentrant" in how)
    try:
        found = gradients(model, loss(checkpointed(model, how)))
    finally:
        set_reentrant_ckpt(False)
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if how == "halves of the model" else {"atol": 0, "rtol": 0}
    assert_same(found, expected, **tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["blocks", "whole model"])
def test_gradients_under_autocast(how, dtype):
    model, image = build("ViT").train(), photo()
    apply_algm(model, **SETTINGS)
    with torch.autocast("cpu", dtype):
        expected = gradients(model, model.forward_features(image).float().square().mean())
        found = gradients(model, checkpointed(model, how)(image).float().square().mean())
    assert_same(found, expected, atol=0, rtol=0)
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", ["min", "image"])
def test_gradients_under_autocast_are_near_those_in_full_precision(batch, dtype):
    """Scaled, as float16 needs it; and what overflows is left out, without a trace."""
    model, image = apply_algm(build("ViT").train(), **SETTINGS, batch=batch), photo()
    expected = gradients(model, model.forward_features(image).square().mean())
    counts, weights = model.algm.tokens_per_layer, copy.deepcopy(model.state_dict())
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=1e-3), torch.amp.GradScaler("cpu", init_scale=2.0**12)

    def step(overflow=1.0):
        with torch.autocast("cpu", dtype):
            loss = model.forward_features(image).float().square().mean() * overflow
        model.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()

    step(overflow=torch.inf)
    assert scaler.get_scale() == 2.0**11
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    step()
    assert scaler.get_scale() == 2.0**11
    assert model.algm.tokens_per_layer == counts
    for name, gradient in expected.items():
        found = model.get_parameter(name).grad
        assert torch.nn.functional.cosine_similarity(found.flatten(), gradient.flatten(), dim=0) > 0.99, name
        assert 0.97 < found.norm() / gradient.norm() < 1.03, name
    assert not torch.equal(model.cls_token, weights["cls_token"])


@pytest.mark.parametrize(
    "settings", [{}, {"batch": "image"}, {"tau": "auto", "merge_to": 0.6}], ids=["min", "image", "fixed"]
)
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_gradients_of_micro_batches_add_up(settings, recompute):
    """To those of one model for each; and, where images do not share a count, to those of the whole batch."""
    settings, images = {**SETTINGS, "gbm_layers": [3], **settings}, photo(batch=6)

    def built():
        model = apply_algm(build("ViT").train(), **settings)
        model.set_grad_checkpointing(recompute)
        return model

    def loss(model, images):
        return model.forward_features(images).square().sum()

    alone = [gradients(model, loss(model, part)) for model, part in ((built(), part) for part in images.split(2))]
    model, expected = built(), {name: sum(each[name] for each in alone) for name in alone[0]}
    for part in images.split(2):
        loss(model, part).backward()
    assert_same({name: model.get_parameter(name).grad for name in expected}, expected, atol=1e-3, rtol=1e-5)
    if settings.get("batch") or settings.get("tokens"):
        assert_same(gradients(model, loss(model, images)), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("batch", ["min", "image"])
def test_random_depth_and_dropout_draw_as_ever(batch):
    drops = {f"{part}_drop_rate": 0.2 for part in ("pos", "proj", "attn")}
    model, image = build("ViT", drop_path_rate=0.4, **drops).train(), photo(batch=3)

    def drawn():
        torch.manual_seed(0)
        return gradients(model, model(image).square().sum()), torch.rand(())

    expected, after = drawn()
    apply_algm(model, **{**SETTINGS, "tau": 1.0, "gbm_tau": 1.0}, batch=batch)  # which no two tokens reach
    found, still = drawn()
    assert model.algm.tokens_per_layer[-1] == 31
    assert_same(found, expected, atol=0, rtol=0)
    assert torch.equal(after, still)
    model.algm.tau, model.algm.gbm_tau = 0.5, "adaptive"
    merged, again = drawn()[0], drawn()[0]
    assert model.algm.tokens_per_layer[-1] < 31
    assert_same(again, merged, atol=0, rtol=0)
    assert merged.keys() == expected.keys()


class Segmentor(torch.nn.Module):
    """A trunk and a head with batch norm."""

    def __init__(self, trunk):
        super().__init__()
        self.trunk = trunk
        self.head = torch.nn.Sequential(torch.nn.Conv2d(64, 8, 1), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 3, 1))

    def forward(self, image):
        x = self.trunk.forward_features(image)
        return self.head(x[:, 1:].mT.unflatten(2, (6, 5)))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_head_trains_on_a_frozen_trunk(mode):
    model, image = apply_algm(Segmentor(build("ViT").requires_grad_(False)).train(), **SETTINGS), photo(batch=3)
    getattr(model.trunk, mode)()
    for _ in range(3):
        found = gradients(model, model(image).square().mean())
        assert {name.partition(".")[0] for name in found} == {"head"}
        assert len(found) == 6
    assert model.algm.token_map.sizes.shape[1] < 31
    assert (model.algm.token_map.packing is None) == (mode == "train")
    model.trunk.set_grad_checkpointing()
    again = gradients(model, model(image).square().mean())
    with torch.no_grad():
        features = model.trunk.forward_features(image)
    model.trunk.forward_features = lambda image: features
    expected = gradients(model, model(image).square().mean())
    assert_same(found, expected, atol=0, rtol=0)
    assert_same(again, expected, atol=0, rtol=0)


@pytest.mark.parametrize("frozen", [1, 2, 4], ids="the first {} blocks".format)
def test_what_is_frozen_changes_no_other_gradient(frozen):
    """Before the first merge, at it, and behind them all."""
    model, image = apply_algm(build("ViT").train(), **SETTINGS), photo()
    expected = gradients(model, model(image).square().sum())
    for parameter in (model.cls_token, model.pos_embed, *model.patch_embed.parameters()):
        parameter.requires_grad = False
    model.blocks[:frozen].requires_grad_(False)
    found = gradients(model, model(image).square().sum())
    blocks = {int(name.split(".")[1]) for name in found if name.startswith("blocks")}
    assert blocks == set(range(frozen, 5))
    assert_same(found, {name: expected[name] for name in found}, atol=0, rtol=0)


def test_frozen_batch_norms_of_a_head_stay_as_they_are():
    model, image = apply_algm(Segmentor(build("ViT")).train(), **SETTINGS), photo(batch=3)
    norm = model.head[1].eval()
    before = copy.deepcopy(norm.state_dict())
    whole = gradients(model, model(image).square().sum())
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert model.algm.token_map.packing is None
    norm.requires_grad_(False)
    part = gradients(model, model(image).square().sum())
    assert whole.keys() - part.keys() == {"head.1.weight", "head.1.bias"}
    assert_same(part, {name: whole[name] for name in part}, atol=0, rtol=0)


def test_a_backward_pass_in_another_thread_leaves_the_handle_its_forward():
    model = apply_algm(build("ViT").train(), **SETTINGS)
    output = checkpointed(model, "whole model")(photo())
    counts = model.algm.tokens_per_layer
    run_in_threads([output.sum().backward], times=1)
    assert model.algm.tokens_per_layer == counts
    assert all(parameter.grad is not None for parameter in model.blocks.parameters())


def test_functional_gradients():
    """torch.func wraps tensors in ones without storage."""
    model, image = apply_algm(build("ViT"), **SETTINGS), photo()
    expected = gradients(model, model.forward_features(image).square().mean())
    parameters = dict(model.named_parameters())

    class Features(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model.forward_features(x)

    def loss(parameters):
        named = {f"model.{name}": value for name, value in parameters.items()}
        return torch.func.functional_call(Features(), named, (image,)).square().mean()

    found = torch.func.grad(loss)(parameters)
    assert_same({name: found[name] for name in expected}, expected, atol=1e-6, rtol=1e-5)


def test_recomputation_plans_nothing_anew(monkeypatch):
    model = apply_algm(build("ViT").train(), **SETTINGS)
    model.set_grad_checkpointing()
    output = model.forward_features(photo())
    for plan in ("plan_clap", "plan_gbm"):
        monkeypatch.setattr(
            f"algm_patch.patching.forward_pass.{plan}", lambda *_: pytest.fail("planned in the backward pass")
        )
    output.sum().backward()


def test_recomputation_from_a_moved_input_is_refused_not_guessed():
    model = apply_algm(build("ViT").train(), **SETTINGS)
    model.set_grad_checkpointing()
    pack = torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x)
    with pack:
        output = model.forward_features(photo())
    with pytest.raises(RuntimeError, match="recomputed in the backward pass from a copy"):
        output.sum().backward()


def test_a_batch_merges_the_smallest_number_of_its_images():
    """Each image its own most similar windows, as many as the image with the fewest that pass."""
    model = apply_algm(build("ViT").train(), clap_layer=1, gbm_layers=[], tau=0.8)
    images = photo(batch=4)
    alone = []
    for image in images:
        model(image[None])
        alone.append(model.algm.token_map.sizes.shape[1])
    assert len(set(alone)) > 1
    model(images)
    sizes, labels = model.algm.token_map.sizes, model.algm.token_map.labels
    assert sizes.shape == (4, max(alone))
    assert (sizes > 0).all()
    assert all(len(row.unique()) == max(alone) for row in labels)


@pytest.mark.parametrize("state", ["unpatched", "patched", "removed"])
def test_copies_of_every_kind(state):
    model, image = build("ViT"), photo()
    patched = state == "patched"
    if state != "unpatched":
        apply_algm(model, **SETTINGS)
    if state == "removed":
        remove_algm(model)
    with torch.no_grad():
        expected = model(image)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        for twin in (
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            pickle.loads(pickle.dumps(model, protocol=2)),
            torch.load(buffer, weights_only=False),
        ):
            assert torch.equal(twin(image), expected)
            if not patched:
                apply_algm(twin, **SETTINGS)
                continue
            assert type(twin.blocks[0]) is type(model.blocks[0])
            assert twin.algm is not model.algm
            twin.algm.tau = 2.0
            assert model.algm.tau == 0.5
            remove_algm(twin)
            assert not hasattr(twin, "algm")
            assert hasattr(model, "algm")
            assert torch.equal(model(image), expected)


def test_state_dicts_go_between_patched_and_unpatched(tmp_path):
    image = photo()
    source, target = build("ViT"), build("ViT")
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(1.1)
    plain_keys = list(source.state_dict())
    expected = source(image)
    apply_algm(source, **SETTINGS)
    assert list(source.state_dict()) == plain_keys
    save_file(source.state_dict(), tmp_path / "patched.safetensors")
    target.load_state_dict(load_file(tmp_path / "patched.safetensors"))
    assert torch.equal(target(image), expected)
    save_file(target.state_dict(), tmp_path / "plain.safetensors")
    source.load_state_dict(load_file(tmp_path / "plain.safetensors"))
    remove_algm(source)
    assert torch.equal(source(image), expected)


def run_in_threads(jobs, times=20):
    results = [None] * len(jobs)

    def run(i, job):
        results[i] = [job() for _ in range(times)]

    threads = [threading.Thread(target=run, args=item) for item in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("shared", [False, True], ids=["two models", "one model"])
def test_threads_do_not_meet(shared):
    trunks = [apply_algm(build("ViT", dynamic_img_size=True), **SETTINGS) for _ in range(2)]
    if shared:
        trunks[1] = trunks[0]
    images = [photo(batch=1, grid=(6, 5)), photo(batch=2, grid=(8, 3), seed=1)]

    def job(i):
        def run():
            with torch.no_grad():
                output = trunks[i].forward_features(images[i])
            return output, trunks[i].algm.token_map.labels

        return run

    expected = [job(i)() for i in range(2)]
    for found, wanted in zip(run_in_threads([job(0), job(1)]), expected, strict=True):
        for output, labels in found:
            torch.testing.assert_close(output, wanted[0])
            assert torch.equal(labels, wanted[1])


class Synchronisations(TorchDispatchMode):
    """Counts the operations that make the host wait for the device."""

    WAITING = (
        torch.ops.aten._local_scalar_dense,
        torch.ops.aten.nonzero,
        torch.ops.aten.is_nonzero,
        torch.ops.aten.equal,
    )
    count = 0

    def __enter__(self):
        def tolist(tensor, read=torch.Tensor.tolist):
            self.count += 1
            return read(tensor)

        self.patch = patch.object(torch.Tensor, "tolist", tolist)
        self.patch.start()
        return super().__enter__()

    def __exit__(self, *error):
        self.patch.stop()
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket in self.WAITING
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("settings", [{"tau": "auto"}, {"tau": 0.5, "gbm_tau": "tau"}, {"tau": 2.0}, {"batch": "min"}])
def test_one_synchronisation_a_merge(batch, settings):
    model = build("ViT")
    with torch.no_grad(), Synchronisations() as plain:
        model(photo(batch=batch))
    apply_algm(model, clap_layer=1, gbm_layers=[2, 4], **settings)
    with torch.no_grad(), Synchronisations() as patched:
        model(photo(batch=batch))
    merges = settings.get("tau") != 2.0
    assert patched.count - plain.count == merges + 2


@pytest.mark.parametrize("every_block", [False, True])
def test_the_handle_keeps_no_activation_alive(every_block):
    model = apply_algm(build("ViT").train(), **SETTINGS)
    if every_block:
        read_every_block(model)
    alive = []
    for module in [*model.blocks, *(block.mlp for block in model.blocks)]:
        module.register_forward_hook(lambda _, inputs, output: alive.append(weakref.ref(output)))
    output = model.forward_features(photo())
    alive.append(weakref.ref(output))
    del output
    gc.collect()
    assert [reference for reference in alive if reference() is not None] == []
    assert len(alive) == 11


def test_a_model_goes_when_its_last_user_lets_go():
    gc.collect()
    gc.disable()
    try:
        model = apply_algm(build("ViT"), **SETTINGS)
        model(photo())
        handle, trace = model.algm, weakref.ref(model.blocks[2])
        del model
        assert trace() is None
    finally:
        gc.enable()
    assert "5 blocks" in repr(handle)
    with pytest.raises(RuntimeError, match="model of this handle is gone"):
        handle.tau = 0.3


def test_a_block_copied_alone_leaves_its_model_behind():
    model = apply_algm(build("ViT"), **SETTINGS)
    block = copy.deepcopy(model.blocks[1])
    assert len(pickle.dumps(block)) < 1.1 * len(pickle.dumps(remove_algm(build_patched()).blocks[1]))
    with pytest.raises(RuntimeError, match=r"block 2 .* cannot trace"):
        block(torch.randn(1, 31, 64))
    assert type(remove_algm(block)) is timm.models.vision_transformer.Block
    assert block(torch.randn(1, 31, 64)).shape == (1, 31, 64)
    model(photo())


def build_patched():
    return apply_algm(build("ViT"), **SETTINGS)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_wrapper_has_the_handle_of_its_own_trunk(twin_of):
    whole = apply_algm(torch.nn.Sequential(build("ViT"), torch.nn.Linear(3, 2)), **SETTINGS)
    twin = twin_of(whole)
    assert twin.algm is twin[0].algm is not whole.algm
    with torch.no_grad():
        assert torch.equal(twin(photo()), whole(photo()))
        twin.algm.tau = 2.0
        assert not torch.equal(twin(photo()), whole(photo()))
    remove_algm(twin)
    assert not hasattr(twin, "algm")
    assert hasattr(whole, "algm")


def test_a_shallow_copy_shares_the_handle_with_its_model():
    model = apply_algm(build("ViT"), **SETTINGS)
    twin = copy.copy(model)
    del twin
    model(photo())
    remove_algm(model)
