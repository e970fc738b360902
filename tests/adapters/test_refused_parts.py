"""Blocks that are refused by what they have: copies of SAM's and others' under any path."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from algm_patch import apply_algm


class Attention(nn.Module):
    """Attention along the sides of a grid [B, H, W, D], as SAM's and ViTDet's."""

    def __init__(self, dim, relative):
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        if relative:
            self.rel_pos_h, self.rel_pos_w = nn.Parameter(torch.zeros(11, dim)), nn.Parameter(torch.zeros(11, dim))

    def forward(self, x):
        query, key, value = self.qkv(x).flatten(1, 2).chunk(3, -1)
        return self.proj(scaled_dot_product_attention(query, key, value).view_as(x))


def window_partition(x, size):
    """Cut a grid [B, H, W, D] into windows."""
    return x.unflatten(2, (-1, size)).unflatten(1, (-1, size)).transpose(2, 3).flatten(0, 2)


class WindowBlock(nn.Module):
    """A block of SAM's image encoder, of which some attend in windows and some to all."""

    def __init__(self, dim=64, window_size=2, relative=True):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = Attention(dim, relative), nn.Linear(dim, dim)
        self.window_size = window_size

    def forward(self, x):
        y = self.norm1(x)
        windows = window_partition(y, self.window_size) if self.window_size > 0 else y
        x = x + self.attn(windows).view_as(x)
        return x + self.mlp(self.norm2(x))


class PackedAttention(nn.Module):
    """Attention of images that lie end to end."""

    def __init__(self, dim):
        super().__init__()
        self.qkv = nn.Linear(dim, dim)

    def forward(self, x, cu_seqlens):
        return self.qkv(x)


class PackedBlock(nn.Module):
    """A block of Qwen's vision tower, whose sequence is that of all images."""

    def __init__(self, dim=64):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = PackedAttention(dim), nn.Linear(dim, dim)

    def forward(self, x, cu_seqlens):
        x = x + self.attn(self.norm1(x), cu_seqlens)
        return x + self.mlp(self.norm2(x))


class CrossBlock(nn.Module):
    """A block of a decoder, which attends to what an encoder made of another image."""

    def __init__(self, dim=64):
        super().__init__()
        self.norm1, self.norm2, self.norm3, self.norm_y = (nn.LayerNorm(dim) for _ in range(4))
        self.attn = nn.MultiheadAttention(dim, 4, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(dim, 4, batch_first=True)
        self.mlp = nn.Linear(dim, dim)

    def forward(self, x, y):
        z, y = self.norm1(x), self.norm_y(y)
        x = x + self.attn(z, z, z)[0]
        x = x + self.cross_attn(self.norm2(x), y, y)[0]
        return x + self.mlp(self.norm3(x)), y


class GatedBlock(nn.Module):
    """A block that no structure fits."""

    def __init__(self, dim=64):
        super().__init__()
        self.my_norm, self.qkv, self.gate = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        query, key, value = self.qkv(self.my_norm(x)).chunk(3, -1)
        return x + scaled_dot_product_attention(query, key, value) * self.gate(x).sigmoid()


def model_of(**sequences):
    """A model with a patch projection, and sequences of blocks by name."""
    model = nn.Module()
    model.patch_embed = nn.Conv2d(3, 64, 16, 16)
    for name, blocks in sequences.items():
        setattr(model, name, nn.ModuleList(blocks))
    return model


def of_global_blocks():
    """Turn off the windows, as cellpose does with SAM's encoder."""
    return model_of(blocks=[WindowBlock(window_size=0) for _ in range(3)])


REFUSED = {
    "SAM": (
        lambda: model_of(blocks=[WindowBlock(window_size=2 * (i < 2)) for i in range(3)]),
        r"WindowBlock, its tokens stay a grid .* windows or with relative positions",
    ),
    "SAM, no windows": (of_global_blocks, r"WindowBlock, its tokens stay a grid .* windows or with relative positions"),
    "windows, no bias": (
        lambda: model_of(blocks=[WindowBlock(relative=False) for _ in range(3)]),
        "WindowBlock, its attention runs in windows of a full grid",
    ),
    "packed images": (
        lambda: model_of(blocks=[PackedBlock() for _ in range(3)]),
        "PackedBlock, the patches of all images lie end to end",
    ),
    "encoder and a longer decoder": (
        lambda: model_of(enc_blocks=[GatedBlock() for _ in range(2)], dec_blocks=[CrossBlock() for _ in range(4)]),
        "GatedBlock computes its output in",
    ),
    "a decoder": (
        lambda: model_of(dec_blocks=[CrossBlock() for _ in range(4)]),
        "CrossBlock, the tokens attend to others than their own, as a decoder's do",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_what_it_has(what):
    build, reason = REFUSED[what]
    model = build()
    types = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=reason) as error:
        apply_algm(model)
    assert ("write an Adapter" in str(error.value)) == ("GatedBlock" in reason)
    assert [type(module) for module in model.modules()] == types


def test_convolutions_called_attention_are_no_transformer_blocks():
    """Channel attention of a CNN is no attention over tokens."""
    block = nn.Module()
    block.attn = nn.Conv2d(64, 64, 1)
    with pytest.raises(ValueError, match="there is no sequence of transformer blocks in it"):
        apply_algm(model_of(stages=[block, nn.Sequential(block)]))
