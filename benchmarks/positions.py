"""Whose position has a merged token: its first member's, or the mean of its members'?

    python benchmarks/positions.py > benchmarks/results/positions.txt

For each family (no trained weights at hand: random ones, queries and keys scaled up until attention is as peaked as a
trained model's, and position tables of unit spread): mean cosine of the last layer's tokens with the unpatched model's,
over three photographs, when rotary angles and relative biases of a group are those of its first member, or averaged
over its members (the mean of the rotations, which is what the members' keys give on average).

The library takes the mean of rotary angles, and of relative biases those of the first members: there the mean gains
next to nothing and costs a pass over all pairs of tokens in every layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from skimage import data
from torch import Tensor, nn

from algm_patch import apply_algm, remove_algm
from algm_patch.core.layer_tokens import LayerTokens
from algm_patch.core.token_map import TokenMap

SIZE = 384
FAMILIES = {
    "EVA-02": "eva02_small_patch14_224",
    "DINOv3": "vit_small_patch16_dinov3",
    "RoPE, mixed": "vit_small_patch16_rope_mixed_224",
    "BEiT": "beit_base_patch16_224",
    "relative positions": "vit_relpos_small_patch16_224",
}
SETTINGS = {"CLAP": {"gbm_layers": []}, "CLAP and GBM": {"gbm_layers": [5]}}


def main() -> None:
    print(f"{'':20} {'':14} {'first':>8} {'mean':>8}")
    for family, name in FAMILIES.items():
        model = build(name)
        for label, settings in SETTINGS.items():
            with torch.inference_mode():
                first, mean = (agreement(model, settings, *rule) for rule in (FIRST, MEAN))
            print(f"{family:20} {label:14} {first:8.4f} {mean:8.4f}")


def build(name: str) -> nn.Module:
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


def agreement(model: Any, settings: dict[str, Any], rotary: Any, biases: Any) -> float:
    cosines = []
    for picture in (data.astronaut(), data.coffee(), data.chelsea()):
        side = model.patch_embed.img_size
        image = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1
        image = nn.functional.interpolate(image, side, mode="bilinear", antialias=True)
        expected = model.forward_features(image)
        apply_algm(model, settings=settings)
        with replaced(rotary, biases):
            found = model.forward_features(image)
        remove_algm(model)
        cosines.append(nn.functional.cosine_similarity(found, expected, dim=-1).mean())
    return torch.stack(cosines).mean().item()


@contextmanager
def replaced(rotary: Any, biases: Any) -> Iterator[None]:
    """Within, merged tokens get their rotary angles and relative biases by these rules."""
    own = LayerTokens.average_patches, TokenMap.pair
    LayerTokens.average_patches, TokenMap.pair = rotary, biases  # type: ignore[method-assign]
    try:
        yield
    finally:
        LayerTokens.average_patches, TokenMap.pair = own  # type: ignore[method-assign]


def take_first(tokens: LayerTokens, x: Tensor, batched: bool = False) -> Tensor:
    assert tokens.token_map is not None
    first = tokens.token_map.without_prefix(tokens.num_prefix_tokens).first
    return x.index_select(-2, first.flatten()).unflatten(-2, first.shape).movedim(-3, 0)


def pair_mean(token_map: TokenMap, x: Tensor) -> Tensor:
    x = x[(None,) * (4 - x.dim())].expand(len(token_map.labels), -1, -1, -1)
    rows = token_map.merge(x.movedim(2, 1)).movedim(1, 2)
    return token_map.merge(rows.movedim(3, 1)).movedim(1, 3)


FIRST, MEAN = (take_first, TokenMap.pair), (LayerTokens.average_patches, pair_mean)

if __name__ == "__main__":
    main()
