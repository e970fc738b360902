"""The methods that ALGM is compared with do what their papers say, and leave the model as it was."""

import contextlib
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common.gflops import counting, gflops
from benchmarks.evaluation import methods
from benchmarks.evaluation.tome import tome
from tests.support.models import GRID, build, photo

TOKENS = GRID[0] * GRID[1]
FAMILIES = ["ViT", "DINOv2, 4 registers", "SigLIP, average pooling"]


def plain_tome(model, image, r):
    """Return the tokens [P+N, D] after the last block, by lists of members and a loop over pairs."""
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(image))))[0]
    groups = [[i] for i in range(len(x))]
    prefix = model.num_prefix_tokens
    for block in model.blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(x)).view(len(x), 3, attention.num_heads, -1)
        q, k, v = attention.q_norm(qkv[:, 0]), attention.k_norm(qkv[:, 1]), qkv[:, 2]
        sizes = torch.tensor([float(len(group)) for group in groups])
        heads = []
        for head in range(attention.num_heads):
            logits = q[:, head] @ k[:, head].T * attention.scale + sizes.log()
            heads.append(logits.softmax(-1) @ v[:, head])
        x = x + block.ls1(attention.proj(torch.cat(heads, -1)))

        keys = k.mean(1)
        proposals = []
        for a in range(prefix + prefix % 2, len(x), 2):
            cosines = {
                b: torch.cosine_similarity(keys[a], keys[b], dim=0).item()
                for b in range(prefix + 1 - prefix % 2, len(x), 2)
            }
            best = max(cosines, key=cosines.__getitem__)
            proposals.append((cosines[best], a, best))
        joined = {a: b for _, a, b in sorted(proposals, reverse=True)[:r]}
        members = {i: [i, *(a for a, b in joined.items() if b == i)] for i in range(len(x)) if i not in joined}
        merged = sorted(members.values(), key=min)
        x = torch.stack([(x[m] * sizes[m, None]).sum(0) / sizes[m].sum() for m in merged])
        groups = [[token for i in m for token in groups[i]] for m in merged]
        x = x + block.ls2(block.mlp(block.norm2(x)))
    full = x.new_empty(sum(map(len, groups)), x.shape[1])
    for token, group in zip(x, groups, strict=True):
        full[group] = token
    return full


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("r", [1, 2, 3])
def test_tome_is_what_its_paper_says(family, r):
    model, images = build(family), photo(family)
    expected = torch.stack([plain_tome(model, image[None], r) for image in images])
    with tome(model, r):
        found = model.forward_features(images)
    torch.testing.assert_close(found, model.norm(expected), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_tome_with_r_0_is_the_model_bit_for_bit(family):
    model, images = build(family), photo(family)
    expected = model.forward_features(images)
    with tome(model, 0):
        assert torch.equal(model.forward_features(images), expected)


@torch.no_grad()
@pytest.mark.parametrize("picture", [photo(), torch.zeros(2, 3, GRID[0] * 16, GRID[1] * 16)], ids=["photo", "blank"])
def test_tome_merges_exactly_r_in_every_layer(picture):
    """It does so on a blank image too, where all proposals are alike."""
    model = build("ViT")
    nn.init.zeros_(model.pos_embed)
    lengths = []
    for block in model.blocks:
        block.mlp.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    with tome(model, 4):
        assert model.forward_features(picture).shape == (2, 1 + TOKENS, 64)
    assert lengths == [1 + TOKENS - 4 * layer for layer in range(1, 6)]


@torch.no_grad()
def test_tome_never_merges_prefix_tokens():
    """The class token and four registers stay different from each other and from all patches."""
    model, image = build("DINOv2, 4 registers"), photo("DINOv2, 4 registers", batch=1)
    with tome(model, 5):
        tokens = model.forward_features(image)[0]
    copies = Counter(tuple(token.tolist()) for token in tokens)
    assert [copies[tuple(token.tolist())] for token in tokens[:5]] == [1] * 5
    assert max(copies.values()) > 1
    assert len(copies) == 5 + TOKENS - 5 * 5


METHODS = [
    methods.unpatched(),
    *methods.tome_methods([3]),
    *methods.tome_share_methods([0.1]),
    *methods.pitome_methods([0.1]),
    *methods.elvit_methods([(2, 0.4)]),
    *methods.ailurus_methods([(2, 0.4)]),
    *methods.mpm_methods([(2, 4)]),
    *methods.pooling_methods([2]),
    *methods.published_methods([0.5]),
    *methods.default_methods([0.5]),
]


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_afterwards_the_model_is_as_before(method):
    model, images = build("ViT"), photo()
    expected, before = model.forward_features(images), state(model)
    with contextlib.suppress(KeyboardInterrupt), method.patch(model):
        inside = model.forward_features(images)
        raise KeyboardInterrupt
    assert torch.equal(inside, expected) == (method.name == "unpatched")
    assert inside.shape == expected.shape
    assert state(model) == before
    assert torch.equal(model.forward_features(images), expected)


def state(model):
    return [
        (name, type(module), sorted(module.__dict__), len(module._forward_hooks))
        for name, module in model.named_modules()
    ]


@torch.no_grad()
def test_pooling_leaves_a_quarter_of_the_tokens():
    model, images = build("ViT", grid=(6, 8)), photo(grid=(6, 8))
    (method,) = methods.pooling_methods([2])
    with method.patch(model):
        tokens = model.forward_features(images)[:, 1:].unflatten(1, (6, 8))
        assert model.algm.tokens_per_layer == [49, 13, 13, 13, 13]
    corners = tokens[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(tokens, corners)


COUNTED = [
    methods.unpatched(),
    *methods.tome_methods([0, 3]),
    *methods.pitome_methods([0.1]),
    *methods.ailurus_methods([(2, 0.4)]),
    *methods.mpm_methods([(2, 4)]),
    *methods.pooling_methods([2]),
]


@pytest.mark.parametrize("method", COUNTED, ids=lambda method: f"{method.name} {method.setting}")
def test_the_cost_is_what_torch_counts(method):
    """Torch's counter sees every product if gradients are on and attention is made of products."""
    model, image = build("ViT"), photo(batch=1)
    with method.patch(model):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model.forward_features(image)
        with counting(model) as one:
            model(image)
        with counting(model) as three:
            model(image.repeat(2, 1, 1, 1))
            model(image)
    assert one.operations == counter.get_total_flops()
    assert three.operations == 3 * one.operations


@torch.no_grad()
def test_more_merging_costs_less():
    model, image = build("ViT"), photo(batch=1)
    costs = []
    for method in [methods.unpatched(), *methods.tome_methods([1, 2, 3, 4])]:
        with method.patch(model):
            costs.append(gflops(model, image))
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) == 5


def test_published_constants_are_the_authors():
    model = build("ViT")
    for method, tau in zip(methods.published_methods(), methods.PUBLISHED_TAUS, strict=True):
        with method.patch(model):
            assert model.algm.settings.tau == tau
            assert (model.algm.clap_layer, model.algm.gbm_layers, model.algm.gbm_tau) == (1, (5,), "adaptive")
            assert not model.algm.proportional_attention
            assert not model.algm.restore


@torch.no_grad()
def test_what_tome_cannot_do_it_says():
    model, images = build("ViT"), photo()
    with pytest.raises(ValueError, match="r=-1"), tome(model, -1):
        pass
    with pytest.raises(ValueError, match="merge r=9 of the 13 tokens of block 3, but only 6"), tome(model, 9):
        model.forward_features(images)
    other = build("differential attention")
    with pytest.raises(ValueError, match=r"block 1 of VisionTransformer .* has a DiffAttention"), tome(other, 1):
        pass
    (method,) = methods.default_methods([0.5])
    with method.patch(model), pytest.raises(ValueError, match="remove_algm first"), tome(model, 1):
        pass
