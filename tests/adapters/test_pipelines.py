"""Patched models in the pipelines of transformers, and behind the transforms of timm."""

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import timm
import torch
import transformers
from PIL import Image

from algm_patch import apply_algm, remove_algm
from tests.support.models import photo

library: Any = transformers
SETTINGS: dict[str, Any] = {"gbm_layers": [2], "tau": 0.5}
SMALL: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
DINO: dict[str, Any] = {**SMALL, "mlp_ratio": 2, "image_size": 70, "patch_size": 14}


def depth_anything():
    backbone = library.Dinov2Config(
        **DINO, out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False
    )
    sizes = {"neck_hidden_sizes": [16] * 4, "fusion_hidden_size": 16, "head_hidden_size": 8}
    config = library.DepthAnythingConfig(backbone_config=backbone, reassemble_hidden_size=64, **sizes)
    return library.DepthAnythingForDepthEstimation(config)


def beit():
    config = library.BeitConfig(
        **SMALL, intermediate_size=128, image_size=64, out_indices=[1, 2, 3, 4], use_auxiliary_head=False, num_labels=5
    )
    return library.BeitForSemanticSegmentation(config)


# By task: what builds a model and its image processor, and the part of an answer that is compared.
TASKS: dict[str, tuple[Callable[[], Any], Callable[[], Any], Callable[[Any], Any]]] = {
    "depth-estimation": (
        depth_anything,
        lambda: library.DPTImageProcessor(size={"height": 70, "width": 84}, keep_aspect_ratio=False),
        lambda answer: answer["predicted_depth"],
    ),
    "image-segmentation": (
        beit,
        lambda: library.BeitImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False),
        lambda answer: torch.stack([torch.from_numpy(numpy.array(each["mask"])).float() for each in answer]),
    ),
    "image-classification": (
        lambda: library.ViTForImageClassification(library.ViTConfig(**SMALL, image_size=64, patch_size=8)),
        lambda: library.ViTImageProcessor(size={"height": 64, "width": 64}),
        lambda answer: torch.tensor([each["score"] for each in answer]),
    ),
    "image-feature-extraction": (
        lambda: library.Dinov2Model(library.Dinov2Config(**DINO)),
        lambda: library.ViTImageProcessor(size={"height": 70, "width": 70}),
        torch.tensor,
    ),
}
pytestmark = pytest.mark.skipif(
    tuple(map(int, library.__version__.split(".")[:2])) < (4, 57), reason="pipelines of older releases ask the hub"
)


def pictures(count=3):
    arrays = photo(batch=count, grid=(6, 6)).sigmoid().mul(255).byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array) for array in arrays]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("where", ["model", "pipeline"])
def test_a_pipeline_merges_and_answers_as_ever(task, where):
    build, processor, compared = TASKS[task]
    torch.manual_seed(0)
    model = build().eval()

    def answers(**options):
        found = pipeline(pictures(), **options)
        return [compared(answer) for answer in found]

    if where == "model":
        apply_algm(model, **SETTINGS)
    pipeline = library.pipeline(task, model=model, image_processor=processor(), device="cpu")
    if where == "pipeline":
        apply_algm(pipeline.model, **SETTINGS)
    alone, together = answers(), answers(batch_size=3)
    assert model.algm.last_pass.batch == 3
    assert model.algm.tokens_per_layer[-2] < model.algm.last_pass.grid[0] * model.algm.last_pass.grid[1]
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    model.algm.update(tau=1.05, gbm_layers=[])
    unmerged = answers()
    remove_algm(model)
    for one, other in zip(unmerged, answers(), strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_transforms_that_timm_makes_of_a_patched_model():
    model = apply_algm(timm.create_model("vit_tiny_patch16_224", depth=3).eval(), **SETTINGS)
    transform: Any = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    batch = torch.stack([transform(picture) for picture in pictures()])
    torch.testing.assert_close(model(batch), torch.cat([model(image[None]) for image in batch]))
    assert model.algm.tokens_per_layer[0] < 197
