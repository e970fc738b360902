"""Turn the queries and keys of merged tokens by a rotary embedding that attention holds, made for all tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..core.layer_tokens import LayerTokens

ROPES = ("rope", "rotary_emb", "rotary_embedding")


def held_rope(attention: nn.Module) -> str | None:
    """Return the name of the rotary embedding that attention holds; None if it holds none."""
    return next((name for name in ROPES if isinstance(getattr(attention, name, None), nn.Module)), None)


def holds_places(block: nn.Module) -> bool:
    """Return whether a block holds what tells places: a table of biases, or rotary angles."""
    return any(
        getattr(part, "relative_position_index", None) is not None or held_rope(part) is not None
        for part in block.modules()
    )


def with_mean_rotations(attention: nn.Module, tokens: LayerTokens) -> Any:
    """Return an attention that is the same but for its rotary embedding, which turns merged tokens.

    It shares all else with ``attention``, which stays as it is: several threads may run it.
    """
    rope = held_rope(attention)
    assert rope is not None
    twin = object.__new__(type(attention))
    twin.__dict__.update(attention.__dict__)
    twin.__dict__["_modules"] = {**attention._modules, rope: MeanRotation(getattr(attention, rope), tokens)}
    return twin


class MeanRotation(nn.Module):
    """Turn a merged token by the mean of its members' rotations, as `LayerTokens.average_patches` does with angles.

    What a rotary embedding knows of places stays inside it: it turns a copy of the token for each member, at the
    member's place, and these are averaged.

    Args:
        rope: turns [B, heads, L, D] of all tokens, or of all patches.
        tokens: merged, not packed.
    """

    def __init__(self, rope: nn.Module, tokens: LayerTokens) -> None:
        super().__init__()
        self.rope, self.tokens = rope, tokens

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Turn [B, heads, L, D] of the tokens that are left, or of the patches among them."""
        token_map = self.tokens.token_map
        assert token_map is not None
        if x.shape[-2] < token_map.sizes.shape[1]:
            token_map = token_map.without_prefix(self.tokens.num_prefix_tokens)
        copies = token_map.unmerge(x.movedim(-2, 1)).movedim(1, -2)
        return token_map.merge(self.rope(copies, *args, **kwargs).movedim(-2, 1)).movedim(1, -2)
