"""Compare two positions for a merged token: its first member's, or the mean of its members'.

    python -m benchmarks.evaluation.positions > benchmarks/results/positions.txt

For each family: the mean cosine of the last layer's tokens with the unpatched model's, over three photographs, when
rotary angles and relative biases of a group are those of its first member, or averaged over its members (the mean of
the rotations, which is what the members' keys give on average). Weights are random; queries and keys are scaled up
until attention is as peaked as a trained model's, and position tables have unit spread.

The library takes the mean of rotary angles, and the relative biases of first members: there the mean gains next to
nothing and costs a pass over all pairs of tokens in every layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import timm
import torch
from torch import Tensor, nn

from algm_patch.adapters import LayerTokens, beit_attention, timm_relpos
from algm_patch.adapters.attention import bias_between_groups
from algm_patch.functional import TokenMap

from ..common.images import model_input, photograph
from ..common.patching import patched

SIZE = 384
FAMILIES = {
    "EVA-02": "eva02_small_patch14_224",
    "DINOv3": "vit_small_patch16_dinov3",
    "RoPE, mixed": "vit_small_patch16_rope_mixed_224",
    "BEiT": "beit_base_patch16_224",
    "relative positions": "vit_relpos_small_patch16_224",
}
SETTINGS: dict[str, dict[str, Any]] = {"CLAP": {"gbm_layers": []}, "CLAP and GBM": {"gbm_layers": [5]}}
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea")

# Functions that give merged tokens their rotary angles, and their relative biases: given for all tokens, or in a table.
Rule = tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]]


def main() -> None:
    """Print the table."""
    print(f"{'':20} {'':14} {'first':>8} {'mean':>8}")
    for family, name in FAMILIES.items():
        model = build(name)
        for label, settings in SETTINGS.items():
            with torch.inference_mode():
                first, mean = (agreement(model, settings, rule) for rule in (FIRST, MEAN))
            print(f"{family:20} {label:14} {first:8.4f} {mean:8.4f}")


def build(name: str) -> nn.Module:
    """Return a model of timm with peaked attention."""
    torch.manual_seed(0)
    size = SIZE // 16 * (14 if "patch14" in name else 16)
    model = timm.create_model(name, img_size=size, num_classes=0).eval()
    for key, parameter in model.named_parameters():
        if key.endswith("bias_table"):
            nn.init.normal_(parameter)
        elif "gamma" in key:
            nn.init.ones_(parameter)
        elif ("attn.q" in key and parameter.dim() == 2) or "attn.k_proj" in key:
            nn.init.normal_(parameter, std=3 / parameter.shape[1] ** 0.5)
    return model


def agreement(model: Any, settings: dict[str, Any], rule: Rule) -> float:
    """Return the mean cosine of the tokens with those of the unpatched model."""
    rotary, biases, biases_in_table = rule
    cosines = []
    for name in PHOTOGRAPHS:
        image = model_input(photograph(name), model, model.patch_embed.img_size)
        expected = model.forward_features(image)
        with (
            patched(model, **settings),
            mock.patch.object(LayerTokens, "average_patches", rotary),
            mock.patch.object(TokenMap, "pair", biases),
            mock.patch.object(beit_attention, "bias_between_groups", biases_in_table),
            mock.patch.object(timm_relpos, "bias_between_groups", biases_in_table),
        ):
            found = model.forward_features(image)
        cosines.append(nn.functional.cosine_similarity(found, expected, dim=-1).mean())
    return torch.stack(cosines).mean().item()


def take_first(tokens: LayerTokens, x: Tensor, batched: bool = False, neutral: Tensor | None = None) -> Tensor:
    """Return the rotary angles of first members; see ``LayerTokens.average_patches``."""
    assert tokens.token_map is not None
    first = tokens.token_map.without_prefix(tokens.num_prefix_tokens).first
    return x.index_select(-2, first.flatten()).unflatten(-2, first.shape).movedim(-3, 0)


def mean_of_pairs(token_map: TokenMap, x: Tensor) -> Tensor:
    """Return the relative biases averaged over pairs of members; see ``TokenMap.pair``."""
    x = x[(None,) * (4 - x.dim())].expand(len(token_map.labels), -1, -1, -1)
    rows = token_map.merge(x.movedim(2, 1)).movedim(1, 2)
    return token_map.merge(rows.movedim(3, 1)).movedim(1, 3)


def mean_of_table(table: Tensor, index: Tensor, token_map: TokenMap) -> Tensor:
    """Return the relative biases in a table averaged over pairs of members; see ``bias_between_groups``."""
    return mean_of_pairs(token_map, table[index].permute(2, 0, 1))


FIRST: Rule = (take_first, TokenMap.pair, bias_between_groups)
MEAN: Rule = (LayerTokens.average_patches, mean_of_pairs, mean_of_table)

if __name__ == "__main__":
    main()
