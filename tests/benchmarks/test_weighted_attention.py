"""All ways to compute attention with the sizes of merged tokens agree, and so do their gradients."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from algm_patch.core.packing import Packing
from algm_patch.patching import weighted_attention as weighted
from benchmarks.gpu import attention_packed, attention_padded

BATCHED: dict[str, Callable[..., Any]] = {
    "mask": lambda q, k, v, s, scale: scaled_dot_product_attention(
        q, k, v, weighted.as_mask(s[:, None, None], q.dtype), scale=scale
    ),
    "pair correction": attention_padded.by_pair_correction,
    "values": attention_padded.by_values,
    "two extra dimensions": partial(attention_padded.by_extra_dimensions, parts=2),
}
PACKED: dict[str, Callable[..., Any]] = {
    "one by one": weighted.image_by_image,
    "groups": weighted.in_groups,
    "padded": attention_packed.padded,
}
WIDTHS = st.sampled_from([32, 64, 72, 80])


def agree(found, expected, dtype):
    bound = {torch.float32: 2e-5, torch.bfloat16: 4e-2}[dtype]
    torch.testing.assert_close(found.double(), expected, atol=bound, rtol=bound)


def exact(*given: Any) -> Any:
    query, key, value, log_sizes, scale = given
    logits = query.double() @ key.double().mT * scale + log_sizes.double()[:, None, None]
    return logits.softmax(-1) @ value.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", BATCHED)
@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 40), WIDTHS, st.integers(1, 64), st.integers(0, 99))
def test_ways_for_a_batch_agree(name, dtype, batch, heads, length, width, most, seed):
    torch.manual_seed(seed)
    qkv = [torch.randn(batch, heads, length, width).to(dtype).requires_grad_() for _ in range(3)]
    log_sizes = torch.randint(1, most + 1, (batch, length)).float().log()
    found, expected = BATCHED[name](*qkv, log_sizes, width**-0.5), exact(*qkv, log_sizes, width**-0.5)
    agree(found, expected, dtype)
    gradient = torch.randn(found.shape)
    wanted = torch.autograd.grad(expected, qkv, gradient.double())
    for one, other in zip(torch.autograd.grad(found, qkv, gradient.to(dtype)), wanted, strict=True):
        agree(one, other.double(), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PACKED)
@settings(max_examples=25)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 3), WIDTHS, st.integers(0, 99))
def test_ways_for_packed_images_agree(name, dtype, counts, heads, width, seed):
    torch.manual_seed(seed)
    packing = Packing.read(torch.tensor(counts))
    qkv = [torch.randn(1, heads, packing.total, width).to(dtype) for _ in range(3)]
    sizes = torch.randint(1, 9, (len(counts), packing.longest)).masked_fill(packing.padding, 0)
    bias = weighted.as_mask(sizes.log()[:, None, None], dtype)
    found = PACKED[name](*qkv, packing, bias, width**-0.5)
    images = zip(*(x.split(counts, 2) for x in qkv), sizes.log(), strict=True)
    expected = [exact(q, k, v, s[None, : q.shape[2]], width**-0.5).transpose(1, 2) for q, k, v, s in images]
    agree(found, torch.cat(expected, 1), dtype)


def test_equal_sizes_need_no_bias(monkeypatch):
    query, key, value = torch.randn(3, 2, 2, 5, 8)
    given = []
    monkeypatch.setattr(attention_padded, "scaled_dot_product_attention", lambda *x, scale: given.append(x[3]))
    for sizes in ([[4.0] * 5, [2.0] * 5], [[4.0] * 5, [2.0] * 4 + [1.0]]):
        attention_padded.by_pair_correction(query, key, value, torch.tensor(sizes).log(), 1.0)
    assert given[0] is None
    assert given[1] is not None


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "heads", "bias", "way"),
    [
        (None, torch.bfloat16, 64, 2, True, "image_by_image"),
        ((9, 0), torch.bfloat16, 64, 2, True, "in_groups"),
        ((9, 0), torch.bfloat16, 64, 2, False, "in_one_call"),
        ((8, 0), torch.float16, 64, 2, True, "in_one_call"),
        ((8, 0), torch.float16, 256, 2, True, "image_by_image"),  # no kernel takes wider heads
        ((8, 0), torch.float16, 256, 2, False, "in_one_call"),
        ((7, 5), torch.float16, 64, 2, True, "image_by_image"),
        ((9, 0), torch.float32, 64, 2, True, "image_by_image"),
        ((9, 0), torch.bfloat16, 64, 1, True, "image_by_image"),  # queries that share a key
    ],
)
def test_the_way_goes_by_device_dtype_width_and_heads(capability, dtype, width, heads, bias, way, monkeypatch):
    query: Any = SimpleNamespace(is_cuda=capability is not None, device="cuda", shape=(1, 2, 5, width), dtype=dtype)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(weighted, "varlen_attn", object())
    key = torch.empty(1, heads, 5, width)
    assert weighted.chosen(query, key, torch.empty(1, 1, 1, 5) if bias else None).__name__ == way
