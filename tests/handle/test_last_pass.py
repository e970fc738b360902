"""The facts of model.algm about the last forward pass."""

import pytest
import torch
from torch import nn

from algm_patch import apply_algm, calibrate
from algm_patch.functional import TokenMap, clap, gbm
from tests.support.models import build, photo


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
    counts = [count - 1 for count in model.algm.tokens_per_layer]  # without the prefix
    lines = repr(model.algm).splitlines()
    assert lines[4] == "  last forward: batch 2, grid 6x5 + 1 prefix"
    assert lines[5] == f"    patch tokens after each layer: {' '.join(map(str, counts))}"
    assert lines[6].startswith(f"    {model.algm.gflops:.3g} of {model.algm.unpatched_gflops:.3g} GFLOPs of the ViT")
    assert lines[7] == f"    layer 2: CLAP 30 -> {counts[1]}, tau 0.5000"
    assert [line.split(",")[0] for line in lines[8:]] == [
        f"    layer 3: GBM {counts[1]} -> {counts[2]}",
        f"    layer 5: GBM {counts[3]} -> {counts[4]}",
        "    full grid given back after layer 5",
    ]
    assert counts[0] == 30 > counts[1] > counts[2] == counts[3] > counts[4]


@torch.no_grad()
@pytest.mark.parametrize("family", ["ViT", "SigLIP, map pooling", "DINOv2, 4 registers"])
def test_a_head_may_run_on_merged_tokens_and_unmerge_later(family):
    model, image = build(family), photo(family)
    apply_algm(model, gbm_layers=[3], tau=0.5, restore=False)
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
    """A block that calls clap and gbm leaves the tokens that a patched model leaves."""
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
    apply_algm(model, gbm_layers=[3], tau=0.5, size_aware=False, restore=False)  # as published
    torch.testing.assert_close(model.forward_features(image), model.norm(token_map.unmerge(x)))
    assert torch.equal(model.algm.token_map.labels, token_map.labels)


@torch.no_grad()
def test_nothing_merged_is_the_identity_map():
    model = apply_algm(build("ViT"), gbm_layers=[], tau=1.05)
    model(photo())
    assert torch.equal(model.algm.token_map.labels, TokenMap.identity(2, 31).labels)
    assert (model.algm.token_map.sizes == 1).all()


@torch.no_grad()
def test_gbm_may_take_claps_threshold():
    model = apply_algm(build("ViT"), gbm_layers=[3], gbm_tau="tau")
    model(photo(batch=1))
    used = [plan.tau for block in model.algm.last_pass.blocks.values() for plan in block.plans.values()]
    assert len(used) == 2
    assert torch.equal(used[0], used[1])
    model.algm.tau = 0.7
    model(photo(batch=1))
    assert all("0.7000" in line for line in repr(model.algm).splitlines() if "->" in line)


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
    """Most windows are alike, so their mean plus deviation is above every one."""
    model, image = build("ViT"), torch.ones(2, 3, 96, 80)
    image[:, :, :16, :16] = torch.randn(3, 16, 16)
    apply_algm(model, tau="paper", gbm_layers=[])
    if calibrated:
        calibrate(model, image)
    with pytest.warns(UserWarning, match="tau='paper' merges no windows here"):
        model(image)
    assert set(model.algm.tokens_per_layer) == {31}
