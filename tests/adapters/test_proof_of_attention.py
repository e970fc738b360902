"""Attention that shows what it is on many tokens alone, or on a GPU alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from algm_patch.adapters import registry
from tests.support import mutant_attention, mutants
from tests.support.plain_parts import Attention
from tests.support.plain_vits import MaeBlock

RADIUS = 9


class Near(Attention):
    """Attention to what is near, which many tokens show alone."""

    def seen(self, length):
        raise NotImplementedError

    def forward(self, x):
        q, k, v = self.heads_of(x)
        return self.joined(nn.functional.scaled_dot_product_attention(q, k, v, self.seen(x.shape[1])))


class NearByMask(Near):
    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", mutant_attention.near(64, RADIUS))

    def seen(self, length):
        return self.mask[:length, :length]


class NearByCode(Near):
    def seen(self, length):
        return mutant_attention.near(length, 9)


class NearByName(Near):
    def seen(self, length):
        return mutant_attention.near(length, RADIUS)


def near(length, radius=9):
    return mutant_attention.near(length, radius)


class NearByHelper(Near):
    def seen(self, length):
        return near(length)


@pytest.mark.parametrize("attention", [NearByMask, NearByCode, NearByName, NearByHelper])
def test_a_wide_window_is_seen(attention):
    block = MaeBlock()
    block.attn = attention()
    assert "a permutation of the patches does not permute its output" in str(registry.try_structures(block).reason)


# -- kernels that the CPU has not


class OnGpu(Attention):
    """Attention with a kernel of one's own, such as xformers'."""

    def forward(self, x):
        if not x.is_cuda:
            raise NotImplementedError("no kernel for the CPU")
        return super().forward(x)


def test_attention_without_a_kernel_for_the_cpu_is_refused_there():
    block = MaeBlock()
    block.attn = OnGpu()
    assert "NotImplementedError: no kernel for the CPU" in str(registry.try_structures(block).reason)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_attention_without_a_kernel_for_the_cpu_is_proved_where_it_runs(drop):
    block: Any = MaeBlock(drop=drop)
    block.attn = OnGpu()
    block.to("cuda", torch.float16)
    states = torch.get_rng_state(), torch.cuda.get_rng_state()
    assert registry.try_structures(block) == (registry.STRUCTURES[0], None)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(torch.cuda.get_rng_state(), states[1])
    block.norm2 = mutants.around(lambda x: x.roll(1, 1))(block.norm2)
    assert registry.try_structures(block).adapter is None
