"""Batches of unlike images, each of which merges by its own content; and their comparison with the images alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate

from algm_patch import Algm, apply_algm
from tests.support.cases import CASES

# One case for every way that images go through attention: packed or one after the other, with masks, with biases,
# with rotary angles.
ATTENTION_KINDS = (
    "timm ViT",
    "timm ParallelThingsBlock",
    "timm differential attention",
    "timm EVA-02",
    "timm RoPE, mixed",
    "timm BEiT, shared bias",
    "timm relative positions, class token",
    "timm NaFlex, RoPE",
    "transformers DINOv3",
    "transformers BEiT, bias per layer",
    "transformers ViT, eager",
    "Segmenter mask transformer",
    "mmseg ViT",
    "EVA-01 BEiTBaseline, both biases",
    "hub DINOv2, 4 registers",
    "open_clip",
)
# The most different of these.
MAIN_ATTENTION_KINDS = (
    "timm ViT",
    "timm RoPE, mixed",
    "timm BEiT, shared bias",
    "timm NaFlex, RoPE",
    "transformers DINOv3",
    "transformers BEiT, bias per layer",
    "hub DINOv2, 4 registers",
    "open_clip",
)

IN_NEWER_LIBRARIES = ("timm differential attention", "transformers DINOv3")

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}


def unlike(like: Tensor) -> Tensor:
    """Return [4, 3, H, W], as large as ``like``: smooth, noise, almost nothing, and half of each of the first two."""
    size, generator = like.shape[2:], torch.Generator().manual_seed(1)
    noise = torch.randn(3, 3, *size, generator=generator)
    smooth = interpolate(torch.randn(2, 3, 2, 2, generator=generator), size, mode="bilinear")
    mixed = smooth[1].clone()
    mixed[:, : size[0] // 2] = noise[1, :, : size[0] // 2]
    return torch.stack([smooth[0], noise[0], 0.05 * noise[2], mixed])


def tau_between(similarity: Tensor) -> float:
    """Return the middle of the widest gap in the middle half of the similarities: rounding decides nothing there."""
    values = similarity.flatten().sort().values
    values = values[len(values) // 4 : len(values) - len(values) // 4]
    gap = values.diff().argmax()
    return values[gap : gap + 2].mean().item()


def patched(model: Any, final_tokens: Callable[..., Tensor], images: Tensor, **settings: Any) -> Any:
    """Patch the model, with CLAP's threshold between the windows of these images unless the settings give it."""
    apply_algm(model, **{"clap_layer": 1, "gbm_layers": [3], **settings})
    if model.algm.clap_layer is not None and "tau" not in settings:
        final_tokens(images)
        model.algm.tau = tau_between(model.algm.window_similarity)
    return model


def assert_as_alone(
    algm: Algm, final_tokens: Callable[..., Tensor], images: Tensor, tolerance: Any = CLOSE
) -> list[int]:
    """Assert that each image's output and map in the batch are those of the image alone. Return the token counts."""
    together, token_map = final_tokens(images), algm.token_map
    counts = []
    for i in range(len(images)):
        torch.testing.assert_close(together[i : i + 1], final_tokens(images[i : i + 1]), **tolerance)
        own, count = algm.token_map, algm.token_map.sizes.shape[1]
        assert torch.equal(token_map.labels[i], own.labels[0])
        assert torch.equal(token_map.sizes[i, :count], own.sizes[0])
        assert not token_map.sizes[i, count:].any()
        counts.append(count)
    assert token_map.sizes.shape == (len(images), max(counts))
    assert (token_map.sizes.sum(1) == token_map.labels.shape[1]).all()
    return counts


@dataclass(frozen=True)
class PreparedCase:
    """A model, unlike images for it, and how to get their final tokens."""

    model: Any
    images: Tensor
    final_tokens: Callable[..., Tensor]


def prepare(name: str) -> PreparedCase:
    """Build the model of a case by its name."""
    if name in IN_NEWER_LIBRARIES and name not in CASES:
        pytest.skip(f"the libraries installed have no {name}")
    case = CASES[name]
    model = case.build()
    images = unlike(case.image())
    return PreparedCase(model, images, lambda images, **inputs: case.tokens(model, images, **inputs))


IMAGE_KINDS = ["random", "smooth", "constant", "zero", "nan", "inf", "huge"]


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, tuple[int, int], int]:
    """Draw x [B, P+H*W, D], (H, W) and P; in float64, so that no two cosines are equal but by construction."""
    prefix, width = draw(st.integers(0, 4)), draw(st.integers(2, 6))
    grid = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    kinds = draw(st.lists(st.sampled_from(IMAGE_KINDS), min_size=2, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    x = torch.randn(len(kinds), prefix + grid[0] * grid[1], width, generator=generator, dtype=torch.float64)
    for image, kind in zip(x, kinds, strict=True):
        patches = image[prefix:]
        if kind == "smooth":
            patches.copy_(patches.cumsum(0))
        elif kind in ("constant", "zero"):
            patches.copy_(torch.eye(width)[0] * (kind == "constant"))
        elif kind in ("nan", "inf"):
            image[draw(st.integers(0, len(image) - 1)), 0] = float(kind)
        elif kind == "huge":
            image *= 1e200
    return x, grid, prefix
