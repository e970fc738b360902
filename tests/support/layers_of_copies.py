"""Blocks with the names and outputs of transformers' blocks, old and new, written for these tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tests.support.attention_of_positions import HEAD, HEADS, WIDTH


class SelfAttention(nn.Module):
    """The first of a pair: returns its tokens in a tuple, beside their map if it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size = HEADS, HEAD
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, hidden_states: Tensor, head_mask: Any = None, output_attentions: bool = False) -> Any:
        parts = (self.query, self.key, self.value)
        query, key, value = (part(hidden_states).unflatten(2, (HEADS, HEAD)).transpose(1, 2) for part in parts)
        weights = (query @ key.mT * HEAD**-0.5).softmax(-1)
        y = (weights @ value).transpose(1, 2).flatten(2)
        return (y, weights) if output_attentions else (y,)


class PairedAttention(nn.Module):
    """A pair of attention and its output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.output = SelfAttention(), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor, head_mask: Any = None, output_attentions: bool = False) -> Any:
        y, *maps = self.attention(hidden_states, head_mask, output_attentions)
        return (self.output(y), *maps)


class Output(nn.Module):
    """The end of an MLP, which takes the residual and adds it."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return self.dense(hidden_states) + input_tensor


class OldLayer(nn.Module):
    """Returns its tokens in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.layernorm_before, self.layernorm_after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.output = PairedAttention(), Output()
        self.intermediate = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU())

    def forward(self, hidden_states: Tensor, head_mask: Any = None, output_attentions: bool = False) -> Any:
        found, *maps = self.attention(self.layernorm_before(hidden_states), head_mask, output_attentions)
        hidden_states = found + hidden_states
        return (self.output(self.intermediate(self.layernorm_after(hidden_states)), hidden_states), *maps)


class OldFusedLayer(OldLayer):
    """Returns None where its attention has no map."""

    def forward(self, hidden_states: Tensor, head_mask: Any = None, output_attentions: bool = False) -> Any:
        return (*super().forward(hidden_states, head_mask, output_attentions), None)


class NewAttention(nn.Module):
    """Returns its tokens and no map, and turns the patches by the angles that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, position_embeddings: Any = None) -> Any:
        parts = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (part(hidden_states).unflatten(2, (HEADS, HEAD)).transpose(1, 2) for part in parts)
        if position_embeddings is not None:
            query, key = (self.turned(part, *position_embeddings) for part in (query, key))
        y = scaled_dot_product_attention(query, key, value, attention_mask)
        return self.o_proj(y.transpose(1, 2).flatten(2)), None

    def turned(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        prefix, patches = x.tensor_split([x.shape[-2] - sine.shape[-2]], -2)
        left, right = patches.chunk(2, -1)
        y = patches * cosine.to(x) + torch.cat([-right, left], -1) * sine.to(x)
        return torch.cat([prefix, y], -2)


class SinesFirst(NewAttention):
    """Takes sines before cosines."""

    def turned(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        return super().turned(x, sine, cosine)


class NewLayer(nn.Module):
    """Returns its tokens, and needs an attention mask that may be None."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.self_attn = attention
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, hidden_states: Tensor, attention_mask: Any, position_embeddings: Any = None) -> Tensor:
        y, _ = self.self_attn(self.layer_norm1(hidden_states), attention_mask, position_embeddings=position_embeddings)
        hidden_states = hidden_states + y
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))
