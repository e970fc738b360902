"""model.algm, apply and remove."""

import pytest
import timm
import torch
from models import build, photo
from torch import nn

from algm_patch import apply_algm, calibrate, remove_algm
from algm_patch.functional import TokenMap, clap, gbm


def test_before_and_after_a_forward_pass():
    model = apply_algm(build("ViT"), clap_layer=2, gbm_layers=[3, 5], tau=0.5, batch="min")
    assert repr(model.algm).splitlines() == [
        "ALGM on VisionTransformer, 5 blocks",
        "  CLAP  layer 2, window (2, 2), tau 0.5",
        "  GBM   layer 3, 5, tau adaptive",
        "  proportional attention on, batch min",
        "  no forward pass yet",
    ]
    with pytest.raises(RuntimeError, match="no forward pass yet: run the model"):
        _ = model.algm.token_map
    with torch.no_grad():
        model(photo())
    counts = model.algm.tokens_per_layer
    lines = repr(model.algm).splitlines()
    assert lines[4] == "  last forward: batch 2, grid 6x5 + 1 prefix"
    assert lines[5] == f"    tokens after each layer: {' '.join(map(str, counts))}"
    assert lines[6].startswith(f"    {model.algm.gflops:.3g} of {model.algm.unpatched_gflops:.3g} GFLOPs of the ViT")
    assert lines[7] == f"    layer 2: CLAP 31 -> {counts[1]}, tau 0.5000"
    assert [line.split(",")[0] for line in lines[8:]] == [
        f"    layer 3: GBM {counts[1]} -> {counts[2]}",
        f"    layer 5: GBM {counts[3]} -> {counts[4]}",
        "    full grid given back after layer 5",
    ]
    assert counts[0] == 31 > counts[1] > counts[2] == counts[3] > counts[4]


@torch.no_grad()
def test_settings_change_without_patching_again():
    model, image = build("ViT"), photo()
    expected = model(image)
    apply_algm(model, tau=0.5)
    few = model(image)
    model.algm.tau = 0.99
    assert not torch.equal(model(image), few)
    model.algm.clap_layer, model.algm.gbm_layers = None, []
    assert torch.equal(model(image), expected)
    model.algm.clap_layer = 3
    model(image)
    assert model.algm.tokens_per_layer[1] == 31
    model.algm.window = (3, 5)
    model.algm.tau = -1
    model(image)
    assert model.algm.tokens_per_layer[-1] == 3
    assert (model.algm.tau, model.algm.gbm_layers, model.algm.window) == (-1.0, (), (3, 5))


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("tau", -3, ValueError),
        ("gbm_layers", [6], ValueError),
        ("clap_layer", 6, ValueError),
        ("clap_layer", 5, ValueError),  # behind GBM
        ("tua", 0.9, AttributeError),
    ],
)
def test_a_wrong_setting_is_refused_and_the_old_one_kept(name, value, error):
    model = apply_algm(build("ViT"), gbm_layers=[4])
    before = repr(model.algm)
    with pytest.raises(error):
        setattr(model.algm, name, value)
    assert repr(model.algm) == before


def test_an_unknown_name_is_answered_with_the_known_ones():
    model = apply_algm(build("ViT"))
    with pytest.raises(AttributeError, match=r"no attribute 'taus'.*clap_layer.*window"):
        _ = model.algm.taus


@torch.no_grad()
@pytest.mark.parametrize("family", ["ViT", "SigLIP, map pooling", "DINOv2, 4 registers"])
def test_a_head_may_run_on_merged_tokens_and_unmerge_later(family):
    model, image = build(family), photo(family)
    apply_algm(model, gbm_layers=[3], tau=0.5)
    features = model.forward_features(image)
    token_map, prefix = model.algm.token_map, model.num_prefix_tokens
    assert token_map.labels.shape == features.shape[:2]
    assert (token_map.sizes.sum(1) == features.shape[1]).all()
    head = nn.Linear(64, 7)
    merged = token_map.take(features)
    assert merged.shape[1] == model.algm.tokens_per_layer[-1]
    torch.testing.assert_close(model.algm.unmerge(head(merged)), head(features))
    if prefix:
        torch.testing.assert_close(model.algm.unmerge(head(merged[:, prefix:])), head(features[:, prefix:]))
    with pytest.raises(ValueError, match=r"TokenMap\.unmerge expects"):
        model.algm.unmerge(features[:, :5])


@torch.no_grad()
def test_the_functions_and_the_patch_merge_alike():
    """clap and gbm, called in a block of one's own, leave what a patched model leaves."""
    model, image = build("ViT"), photo()
    x = model._pos_embed(model.patch_embed(image))
    bias = None
    for i, block in enumerate(model.blocks):
        x = x + block.attn(block.norm1(x), attn_mask=bias)
        if i == 0:
            x, token_map = clap(x, (6, 5), 0.5)
        elif i == 2:
            x, token_map = gbm(x, token_map, layer=3)
        bias = token_map.sizes.log()[:, None, None]
        x = x + block.mlp(block.norm2(x))
    apply_algm(model, gbm_layers=[3], tau=0.5)
    torch.testing.assert_close(model.forward_features(image), model.norm(token_map.unmerge(x)))
    assert torch.equal(model.algm.token_map.labels, token_map.labels)


@torch.no_grad()
def test_nothing_merged_is_the_identity_map():
    model = apply_algm(build("ViT"), gbm_layers=[], tau=2.0)
    model(photo())
    assert torch.equal(model.algm.token_map.labels, TokenMap.identity(2, 31).labels)
    assert (model.algm.token_map.sizes == 1).all()


@torch.no_grad()
def test_gbm_may_take_claps_threshold():
    model = apply_algm(build("ViT"), gbm_layers=[3], gbm_tau="tau")
    model(photo(batch=1))
    used = [plan.tau for step in model.algm._past().steps.values() for plan in step.plans.values()]
    assert len(used) == 2
    assert torch.equal(used[0], used[1])
    model.algm.tau = 0.7
    model(photo(batch=1))
    assert all("0.7000" in line for line in repr(model.algm).splitlines() if "->" in line)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gbm_layers": [6]}, ValueError, "gbm_layers names layer 6, but VisionTransformer has 5 blocks"),
        ({"clap_layer": 7, "gbm_layers": []}, ValueError, "clap_layer names layer 7"),
        ({"tau": "best"}, ValueError, "'auto', 'paper'"),
        ({"window": "2x2"}, TypeError, "height, width"),
    ],
)
def test_an_error_leaves_the_model_as_it_was(arguments, error, message):
    model, image = build("ViT"), photo()
    with pytest.raises(error, match=message):
        apply_algm(model, **arguments)
    assert type(model.blocks[0]) is timm.models.vision_transformer.Block
    assert "algm" not in model.__dict__
    apply_algm(model, tau=0.5)
    with torch.no_grad():
        patched = model(image)
        with pytest.raises(error, match=message):
            apply_algm(model, **arguments)
        assert torch.equal(model(image), patched)


def test_an_attribute_of_that_name_is_not_overwritten():
    model = build("ViT")
    model.algm = "mine"
    with pytest.raises(ValueError, match="has an attribute 'algm' of its own"):
        apply_algm(model)
    assert model.algm == "mine"


def test_what_is_not_patched_cannot_be_removed():
    with pytest.raises(ValueError, match="VisionTransformer is not patched"):
        remove_algm(build("ViT"))


@pytest.mark.parametrize("which", ["whole", "trunk", "blocks"])
def test_removed_from_anywhere_it_is_gone_everywhere(which):
    trunk = build("ViT")
    whole = apply_algm(nn.Sequential(trunk, nn.ReLU()))
    remove_algm({"whole": whole, "trunk": trunk, "blocks": trunk.blocks}[which])
    assert not hasattr(whole, "algm")
    assert not hasattr(trunk, "algm")
    assert all("_algm" not in module.__dict__ for module in whole.modules())
    assert type(trunk.patch_embed.proj) is nn.Conv2d


def test_applied_again_through_another_module():
    trunk = build("ViT")
    whole = apply_algm(nn.Sequential(trunk, nn.ReLU()), tau=0.5)
    apply_algm(trunk, tau=0.7)
    assert whole.algm is trunk.algm
    assert whole.algm.tau == 0.7


def test_a_class_changed_since_must_be_restored_first():
    """As fully_shard and parametrizations do."""
    model = apply_algm(build("ViT"))
    block = model.blocks[1]
    patched = type(block)
    block.__class__ = type("Sharded", (patched,), {})
    with pytest.raises(ValueError, match=r"class of Sharded was changed after apply_algm"):
        remove_algm(model)
    assert type(model.blocks[0]) is patched
    block.__class__ = patched
    remove_algm(model)


def test_blocks_alone_do_not_know_their_grid():
    model = apply_algm(build("ViT"))
    with pytest.raises(RuntimeError, match=r"block 2 .* cannot trace .* patch embedding did not run"):
        model.blocks[1](torch.randn(1, 31, 64))


def test_a_patch_embedding_replaced_after_the_patch_is_noticed():
    model = apply_algm(build("ViT"))
    model(photo())
    model.patch_embed.proj = nn.Conv2d(3, 64, 16, 16)
    with pytest.raises(RuntimeError, match="was it replaced"):
        model(photo())
    apply_algm(model)
    model(photo())


@torch.no_grad()
def test_an_error_inside_the_model_leaves_the_next_forward_pass_whole():
    model, image = apply_algm(build("ViT"), tau=0.5), photo()
    expected = model(image)
    hook = model.blocks[3].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(image)
    hook.remove()
    assert torch.equal(model(image), expected)


@torch.no_grad()
def test_a_model_looks_the_same_patched():
    model = build("ViT")
    names, text = [name for name, _ in model.named_modules()], repr(model)
    apply_algm(model)
    assert [name for name, _ in model.named_modules()] == names
    assert repr(model) == text
    assert isinstance(model.blocks[0], timm.models.vision_transformer.Block)
    assert isinstance(model, timm.models.VisionTransformer)
    assert len({type(block) for block in model.blocks}) == 1


def test_applied_again_it_keeps_its_handle():
    model = apply_algm(build("ViT"), tau=0.5)
    handle = model.algm
    apply_algm(model, tau=0.7)
    assert model.algm is handle
    assert handle.tau == 0.7


def prune(model):
    model.prune_intermediate_layers([1])


def replace(model):
    model.blocks[1] = timm.models.vision_transformer.Block(64, 4)


def add(model):
    model.blocks.append(timm.models.vision_transformer.Block(64, 4))


@pytest.mark.parametrize("change", [prune, replace, add])
def test_blocks_changed_after_the_patch_are_noticed(change):
    model = build("ViT")
    apply_algm(model, gbm_layers=[2], tau=0.5)
    change(model)
    with pytest.raises(RuntimeError, match=r"no longer those that apply_algm patched .* Call apply_algm again"):
        model.forward_features(photo())
    apply_algm(model, gbm_layers=[2], tau=0.5)
    model.forward_features(photo())
    assert len(model.algm.tokens_per_layer) == len(model.blocks)
    remove_algm(model)
    assert all(type(block) is timm.models.vision_transformer.Block for block in model.blocks)


class Wrapped(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


@torch.no_grad()
def test_blocks_may_be_wrapped_after_the_patch():
    model, image = apply_algm(build("ViT"), tau=0.5), photo()
    expected = model(image)
    model.blocks[2] = Wrapped(model.blocks[2])
    assert torch.equal(model(image), expected)


@pytest.mark.parametrize("part", ["blocks", "patch_embed"])
def test_parts_of_another_patched_model_are_refused(part):
    first, second = apply_algm(build("ViT")), build("ViT")
    setattr(second, part, getattr(first, part))
    with pytest.raises(ValueError, match=r"patched already, as part of another model. Call remove_algm on that"):
        apply_algm(second)
    first(photo())
    remove_algm(first)
    apply_algm(second)(photo())


@torch.no_grad()
def test_claps_threshold_when_its_block_did_not_run():
    model = apply_algm(build("ViT"), clap_layer=2, gbm_layers=[4], gbm_tau="tau")
    x = model._pos_embed(model.patch_embed(photo()))
    with pytest.raises(RuntimeError, match=r"block 2, where CLAP computes it, did not run.*gbm_tau"):
        model.blocks[3](x)


@torch.no_grad()
def test_it_says_after_which_layers_the_grid_is_back():
    model = apply_algm(build("ViT"), clap_layer=2, gbm_layers=[3], tau=0.5)
    model.forward_features(photo())
    assert "full grid given back after layer 5" in repr(model.algm)
    model.forward_intermediates(photo(), indices=[0, 2, 3], intermediates_only=True)
    assert "full grid given back after layer 3, 4" in repr(model.algm)


@torch.no_grad()
@pytest.mark.parametrize("calibrated", [False, True])
def test_the_published_rule_warns_when_it_merges_nothing(calibrated):
    """Windows mostly alike: their mean + deviation is above every one."""
    model, image = build("ViT"), torch.ones(2, 3, 96, 80)
    image[:, :, :16, :16] = torch.randn(3, 16, 16)
    apply_algm(model, tau="paper", gbm_layers=[])
    if calibrated:
        calibrate(model, image)
    with pytest.warns(UserWarning, match="tau='paper' merges nothing here"):
        model(image)
    assert set(model.algm.tokens_per_layer) == {31}
