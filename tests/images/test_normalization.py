"""Images are normalised as the library of the model says, and shown as they were."""

import json
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from algm_patch import apply_algm
from algm_patch.images.normalization import by_processor, normalization
from algm_patch.images.prepare import prepare
from algm_patch.viz import panels
from tests.support import models

transformers = pytest.importorskip("transformers")
SIZE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "patch_size": 16,
    "image_size": 64,
}
IMAGENET = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
OWN = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
# What the image processors of transformers do by default, on every version; where it names none, ImageNet's.
FAMILIES: dict[str, Any] = {
    "ViTModel": HALF,
    "DeiTModel": HALF,
    "BeitModel": HALF,
    "Data2VecVisionModel": HALF,
    "Dinov2Model": CLIP,
    "Dinov2WithRegistersModel": IMAGENET,
    "DINOv3ViTModel": IMAGENET,
    "CLIPVisionModel": CLIP,
    "ChineseCLIPVisionModel": CLIP,
    "CLIPSegVisionModel": HALF,
    "OwlViTVisionModel": CLIP,
    "SiglipVisionModel": HALF,
    "Siglip2VisionModel": HALF,
    "ViTMAEModel": HALF,
    "DPTModel": HALF,
}
THERE = [name for name in FAMILIES if hasattr(transformers, name)]


def build(name, **options):
    torch.manual_seed(0)
    config = getattr(transformers, name.removesuffix("Model") + "Config")
    return getattr(transformers, name)(config(**SIZE, **options)).eval()


def assert_normalised(found, expected):
    for numbers, channels in zip(found, expected, strict=True):
        torch.testing.assert_close(numbers, torch.tensor(channels)[:, None, None], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", THERE)
def test_the_classs_processor(name):
    model = build(name)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in FAMILIES[name])
    for colour in (0, 255, 128):
        image = Image.new("RGB", (64, 64), (colour, 0, 255 - colour))
        tensor, picture = prepare(model, image)
        pixels = torch.tensor([colour, 0, 255 - colour])[:, None, None] / 255
        torch.testing.assert_close(tensor[0], ((pixels - mean) / std).expand(3, *tensor.shape[2:]))
        np.testing.assert_array_equal(picture, np.array(image))
        np.testing.assert_array_equal(prepare(model, tensor)[1][:64, :64], np.array(image))


def test_white_is_one_to_siglip():
    model = apply_algm(build("SiglipVisionModel"), clap_layer=1, gbm_layers=[])
    taken = []
    model.register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    shown = panels(model, np.full((64, 64, 3), 255, np.uint8))
    torch.testing.assert_close(taken[0], torch.ones(1, 3, 64, 64))
    assert (shown["image"] == 255).all()


@pytest.mark.parametrize("nested", [False, True], ids=["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize("name", ["ViTModel", "Dinov2WithRegistersModel"])  # of the second, no class is known
def test_the_checkpoints_processor(tmp_path, name, nested):
    if nested and int(transformers.__version__.partition(".")[0]) < 5:
        pytest.skip("transformers 4.x does not read a processor_config.json with an image processor in it")
    processor = {"image_mean": OWN[0], "image_std": OWN[1]}
    file = "processor_config.json" if nested else "preprocessor_config.json"
    (tmp_path / file).write_text(json.dumps({"image_processor": processor} if nested else processor))
    build(name).save_pretrained(tmp_path)
    model = getattr(transformers, name).from_pretrained(tmp_path)
    assert_normalised(normalization(model, model), OWN)


@pytest.mark.parametrize(
    ("processor", "black", "white"),
    [
        ({"do_normalize": False}, 0, 1),
        ({"do_rescale": False}, -1, 509),
        ({"do_rescale": False, "do_normalize": False}, 0, 255),
        ({"rescale_factor": 1 / 127.5}, -1, 3),
        ({}, -1, 1),
    ],
)
def test_everything_that_a_processor_does_to_pixels(tmp_path, processor, black, white):
    """Compare with transformers' own processor."""
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", **processor})
    )
    build("ViTModel").save_pretrained(tmp_path)
    model = transformers.ViTModel.from_pretrained(tmp_path)
    asked = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    for colour, expected in ((0, black), (255, white)):
        image = Image.new("RGB", (64, 64), (colour,) * 3)
        tensor, _ = prepare(model, image)
        theirs = torch.as_tensor(asked(image, return_tensors="pt")["pixel_values"]).float()
        torch.testing.assert_close(tensor.mean(), theirs.mean(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tensor.mean(), torch.tensor(float(expected)), rtol=1e-5, atol=1e-5)
        assert (prepare(model, tensor)[1] == colour).all()


@pytest.mark.parametrize("name", ["some/checkpoint", "no-such-folder", "/nowhere/at/all"])
def test_a_checkpoint_whose_processor_is_not_here(name):
    model = build("SiglipVisionModel")
    model.config.name_or_path = name
    with pytest.warns(UserWarning, match=rf"{name}.* has no image processor on this machine.*mean .*0\.5.*from_pretr"):
        assert_normalised(normalization(model, model), HALF)


def test_a_folder_without_a_processor_says_to_save_it_there(tmp_path):
    model = build("SiglipVisionModel")
    model.config.name_or_path = str(tmp_path)
    with pytest.warns(UserWarning, match=r"Save it once with processor\.save_pretrained\("):
        assert_normalised(normalization(model, model), HALF)


def test_the_whole_model_says_it_for_its_trunk():
    """UperNet on BEiT is normalised by its own processor (Segformer's, by default), not BEiT's."""
    config = transformers.UperNetConfig(
        backbone_config=transformers.BeitConfig(**SIZE, out_features=["stage1", "stage2"]),
        hidden_size=32,
        use_auxiliary_head=False,
    )
    model = transformers.UperNetForSemanticSegmentation(config)
    assert_normalised(normalization(model, model.backbone), IMAGENET)
    assert_normalised(normalization(model.backbone, model.backbone), HALF)
    assert_normalised(normalization(nn.Sequential(nn.ModuleDict({"a": model})), model.backbone), IMAGENET)
    assert_normalised(normalization(nn.Sequential(nn.Identity(), model.backbone), model.backbone), HALF)


def test_a_model_of_transformers_with_one_of_timm_inside():
    trunk = models.build("SigLIP, average pooling")
    model = transformers.AutoModel.from_config(
        transformers.TimmWrapperConfig(architecture="vit_tiny_patch16_siglip_224", num_labels=0)
    ) if timm.is_model("vit_tiny_patch16_siglip_224") else nn.Sequential(trunk)  # fmt: skip
    inner = next(part for part in model.modules() if hasattr(part, "patch_embed"))
    assert_normalised(normalization(model, inner), HALF)


@pytest.mark.parametrize(
    ("family", "expected"), [("ViT", HALF), ("DINOv2", IMAGENET), ("CLIP", CLIP), ("SigLIP, map pooling", HALF)]
)
def test_timm(family, expected):
    model = models.build(family)
    assert_normalised(normalization(nn.Sequential(model), model), expected)


def test_open_clip():
    """open_clip's models have these attributes, as tuples or lists."""
    trunk: Any = nn.Linear(1, 1)
    model = nn.Sequential(trunk)
    assert_normalised(normalization(model, trunk), IMAGENET)
    trunk.image_mean, trunk.image_std = OWN[0], list(OWN[1])
    assert_normalised(normalization(model, trunk), OWN)


def test_mmengine():
    """Its preprocessors hold buffers [3, 1, 1] for pixels from 0 to 255. One without buffers says nothing."""
    trunk, model = nn.Linear(1, 1), nn.Module()
    model.backbone, model.data_preprocessor = trunk, nn.Module()
    assert_normalised(normalization(model, trunk), IMAGENET)
    for name, numbers in zip(("mean", "std"), OWN, strict=True):
        model.data_preprocessor.register_buffer(name, 255 * torch.tensor(numbers)[:, None, None], False)
    assert_normalised(normalization(model, trunk), OWN)


def test_without_transformers(monkeypatch):
    model = build("SiglipVisionModel")
    assert by_processor(model) is not None
    monkeypatch.delitem(sys.modules, "transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert by_processor(model) is None
        assert "transformers" not in sys.modules
