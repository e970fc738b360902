"""Attention of images of different lengths, packed and padded."""

from unittest import mock

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from algm_patch.adapters.registry import adapter_of
from algm_patch.core import alike
from algm_patch.core.layer_tokens import LayerTokens
from algm_patch.core.packing import Packing
from algm_patch.functional import TokenMap
from algm_patch.patching import packed_attention as packed
from algm_patch.patching import weighted_attention as weighted
from algm_patch.patching.halves import packed_attention_half


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_gradcheck_of_proportional_attention_to_images_of_different_lengths(mode, fused):
    """Attention takes the images padded, packed, or one after the other."""
    block = getattr(timm.models.vision_transformer.Block(8, 2, qkv_bias=True).double(), mode)()
    block.attn.fused_attn = fused
    token_map = TokenMap.from_leaders(
        torch.tensor([[0, 1, 1, 3, 3], [0, 1, 1, 1, 1]]), torch.ones(2, 5, dtype=torch.float64), packed=True
    )
    tokens = LayerTokens(token_map, token_map.key_bias, num_prefix_tokens=1)
    assert token_map.packing.lengths == (3, 2)
    adapter = adapter_of(block)
    assert adapter is not None
    x = torch.randn(1, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: packed_attention_half(adapter, "token", block, x, tokens)[0], x)


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("proportional", [True, False])
def test_the_packed_operator_and_its_gradients(heads, proportional):
    """The gradients are those of autograd through each image, also where two queries share a key."""
    packing = Packing.read(torch.tensor([3, 7, 5]))
    query, key, value = (torch.randn(1, h, 15, 6, dtype=torch.float64, requires_grad=True) for h in (4, heads, heads))
    bias = torch.rand(3, 1, 1, 7, dtype=torch.float64) if proportional else None
    found = packed.opaque(query, key, value, packing.counts, 7, bias, 0.3)
    expected = weighted.image_by_image(query, key, value, packing, bias, 0.3)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, (query, key, value), gradient),
        torch.autograd.grad(expected, (query, key, value), gradient),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_one_call_for_images_of_any_lengths_is_attention_of_each(dtype, monkeypatch):
    """The kernel is CUDA's. A stand-in with its interface, which has no bias, takes its place."""
    packing = Packing.read(torch.tensor([3, 7, 5]))
    query, key, value = (torch.randn(1, 2, 15, 6, dtype=torch.float64) for _ in range(3))
    sizes = torch.rand(3, 1, 1, 7, dtype=torch.float64) * 5

    def kernel(query, key, value, starts, same, longest, also, *, scale):
        assert query.shape == key.shape == value.shape == (15, 2, 8)
        assert (starts.tolist(), same.dtype, longest, also) == ([0, 3, 10, 15], torch.int32, 7, 7)
        images = (x.double().transpose(0, 1)[None].split([3, 7, 5], 2) for x in (query, key, value))
        outputs = [scaled_dot_product_attention(q, k, v, scale=scale) for q, k, v in zip(*images, strict=True)]
        return torch.cat(outputs, 2)[0].transpose(0, 1)

    monkeypatch.setattr(weighted, "varlen_attn", kernel)
    query, key, value = (x.to(dtype) for x in (query, key, value))
    expected = weighted.image_by_image(query.double(), key.double(), value.double(), packing, sizes, None)
    found = weighted.in_one_call(query, key, value, packing, sizes, None)
    torch.testing.assert_close(found, expected, atol=1e-4 if dtype == torch.bfloat16 else 1e-10, rtol=0)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from([0.0, 20.0, 1e6]))
def test_groups_of_like_length_are_attention_of_each(counts, call):
    packing = Packing.read(torch.tensor(counts))
    query, key, value = (torch.randn(1, 2, packing.total, 6, dtype=torch.float64) for _ in range(3))
    sizes = torch.randint(1, 9, (len(counts), packing.longest)).double()
    bias = sizes.masked_fill(packing.padding, 0).log()[:, None, None]
    expected = weighted.image_by_image(query, key, value, packing, bias, 0.3)
    with mock.patch.object(alike, "CALL", call):
        found = weighted.in_groups(query, key, value, packing, bias, 0.3)
    torch.testing.assert_close(found, expected)
