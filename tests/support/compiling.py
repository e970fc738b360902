"""Small models to compile, images, and the comparison of a compiled run with an eager one."""

from typing import Any

import pytest
import timm
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from algm_patch.core.compiling import ONE_GRAPH

IN_ONE_GRAPH = pytest.mark.skipif(not ONE_GRAPH, reason="torch 2.9 is the first to have merges in a graph")
SETTINGS: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [3], "tau": 0.9}
WHOLE: dict[str, Any] = {"fullgraph": True, "dynamic": True}
SIDE = 112


def timm_model(name, **options):
    """Return a ViT that gives all tokens. Layer scales are as large as trained ones: else a block changes nothing."""
    small = {"embed_dim": 64, "num_heads": 4, "depth": 4, "img_size": SIDE, "num_classes": 0, "global_pool": ""}
    return timm.create_model(name, **small, **options)


def transformers_model(name, **options):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, image_size=SIDE, patch_size=14, **options
    )
    return getattr(transformers, f"{name}Model")(config)


FAMILIES: dict[str, Any] = {
    "timm ViT": lambda: timm_model("vit_small_patch14_dinov2", init_values=0.1),
    "timm EVA-02": lambda: timm_model("eva02_small_patch14_224"),
    "timm BEiT": lambda: timm_model("beit_base_patch16_224", init_values=0.1),
    "transformers DINOv2": lambda: transformers_model("Dinov2"),
    "transformers BEiT": lambda: transformers_model("Beit", intermediate_size=128, use_relative_position_bias=True),
}


def images(seed, batch=1):
    """Return noise, of which the first rows are nearly blank, more or fewer: no two patches are equally similar."""
    x = torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    for i in range(batch):
        blank = x[i, :, : (seed + 3 * i) % 8 * 14]
        blank.mul_(0.02).add_(0.5)
    return x


def tokens(model, x):
    output = model(x)
    return output if isinstance(output, torch.Tensor) else output[0]


def counted(backend="eager", **options):
    counter = CompileCounterWithBackend(backend)
    return counter, {"backend": counter, **options}


def assert_same_run(model, compiled, x, **tolerance):
    """Assert that outputs and maps are those of the eager model. Return whether something merged."""
    expected, eager = tokens(model, x), model.algm.token_map
    found = tokens(compiled, x)
    torch.testing.assert_close(found, expected, **tolerance)
    assert torch.equal(model.algm.token_map.labels, eager.labels)
    assert torch.equal(model.algm.token_map.sizes, eager.sizes)
    return eager.sizes.shape[1] < eager.labels.shape[1]
