"""Models for segmentation of Hugging Face predict as their own image processors and post-processing do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from algm_patch import apply_algm
from benchmarks.evaluation.loading import load
from benchmarks.evaluation.weights import ModelError
from tests.support.tiny_segmentation import (
    CLASSES,
    HIGH,
    WIDE,
    noise,
)

SMALL = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 128}
PYRAMID = {"out_indices": [1, 2, 3, 4], "pool_scales": [1, 2], "use_auxiliary_head": False}
SIDES = {"height": 64, "width": 64}


def config_of(family: str, **settings: Any) -> Any:
    return getattr(transformers, f"{family}Config")(**settings)


def of_beit(family: str) -> Any:
    return config_of(family, image_size=64, num_labels=CLASSES, **SMALL, **PYRAMID)


HUGGING_FACE = {
    "BEiT": ("BeitForSemanticSegmentation", of_beit("Beit"), "BeitImageProcessor"),
    "Data2Vec": ("Data2VecVisionForSemanticSegmentation", of_beit("Data2VecVision"), "BeitImageProcessor"),
    "DPT": (
        "DPTForSemanticSegmentation",
        config_of(
            "DPT",
            image_size=64,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[16, 16, 32, 32],
            fusion_hidden_size=16,
            use_auxiliary_head=False,
            num_labels=CLASSES,
            **SMALL,
        ),
        "DPTImageProcessor",
    ),
    "UperNet": (
        "UperNetForSemanticSegmentation",
        config_of(
            "UperNet",
            backbone_config=config_of(
                "Beit", image_size=64, out_features=["stage1", "stage2", "stage3", "stage4"], **SMALL
            ),
            pool_scales=[1, 2],
            hidden_size=32,
            use_auxiliary_head=False,
            num_labels=CLASSES,
        ),
        "SegformerImageProcessor",
    ),
    "EoMT": (
        "EomtForUniversalSegmentation",
        config_of(
            "Eomt", image_size=64, num_queries=6, num_blocks=1, num_register_tokens=2, num_labels=CLASSES, **SMALL
        ),
        "EomtImageProcessor",
    ),
}


def hugging_face(kind: str, folder: Path, size: dict[str, int] = SIDES, **settings: Any) -> Any:
    name, config, processor = HUGGING_FACE[kind]
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    processor = getattr(transformers, processor)(size=size, **settings)
    processor.save_pretrained(folder)
    return model, processor


@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_hugging_face_models(kind, tmp_path):
    """Predictions are those of the model's own image processor, before and after."""
    theirs, processor = hugging_face(kind, tmp_path)
    model = load(str(tmp_path))
    image = torch.from_numpy(np.array(noise(0))).permute(2, 0, 1)
    inputs = processor(images=[image], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(model.preprocess(image), inputs, atol=0.02, rtol=0)  # one grey level is 0.008 to 0.018
    with torch.no_grad():
        outputs = theirs(pixel_values=inputs)
    if kind == "EoMT":  # its post-processing reads no height and width
        settings = {"size": {"shortest_edge": 64, "longest_edge": 64}}
        outputs.patch_offsets = None
    else:
        settings = {}
    expected = processor.post_process_semantic_segmentation(outputs, target_sizes=[(HIGH, WIDE)], **settings)[0]
    found = model.predict(image, (HIGH, WIDE)).argmax(0)
    assert len(expected.unique()) > 1
    assert (found == expected).float().mean() > 0.99
    before = model(model.preprocess(image))
    apply_algm(model, 1, [2], tau=-1.0)
    after = model(model.preprocess(image))
    assert after.shape == before.shape
    assert not torch.equal(after, before)


def test_hugging_face_models_that_do_not_fit(tmp_path):
    hugging_face("EoMT", tmp_path, {"shortest_edge": 64, "longest_edge": 64})
    with pytest.raises(ModelError, match="shortest_edge"):
        load(str(tmp_path))
    hugging_face("BEiT", tmp_path, do_center_crop=True)
    with pytest.raises(ModelError, match="do_center_crop"):
        load(str(tmp_path))
    assert load(str(tmp_path), size=(64, 64)).size == (64, 64)
    classifier = tmp_path / "classifier"
    hugging_face("BEiT", classifier)
    transformers.BeitModel(HUGGING_FACE["BEiT"][1]).save_pretrained(classifier)
    with pytest.raises(ModelError, match="lacks weights"):
        load(str(classifier))
