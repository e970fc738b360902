"""transformers' models that are not patched, and the reasons that they are given."""

import pytest
import torch
import transformers

from algm_patch import apply_algm
from tests.support.models import blocks_of
from tests.support.models_huggingface import build


def on_meta(make):
    """Build a model without memory for its weights; with it, if building reads numbers from tensors."""
    try:
        with torch.device("meta"):
            return make()
    except RuntimeError:
        return make()


REFUSED = {
    "SwinModel": ("SwinConfig", "windows"),
    "Swinv2Model": ("Swinv2Config", "windows"),
    "DonutSwinModel": ("DonutSwinConfig", "windows"),
    "HieraModel": ("HieraConfig", "windows"),
    "VitDetModel": ("VitDetConfig", "windows"),
    "SamVisionModel": ("SamVisionConfig", "grid .* windows"),
    "SamHQVisionModel": ("SamHQVisionConfig", "grid .* windows"),
    "Sam2VisionModel": ("Sam2VisionConfig", "windows"),
    "GotOcr2ForConditionalGeneration": ("GotOcr2Config", "GotOcr2VisionLayer, .* grid .* windows"),
    "SegGptForImageSegmentation": ("SegGptConfig", "grid"),
    "SegformerModel": ("SegformerConfig", "pooled"),
    "PvtModel": ("PvtConfig", "pooled"),
    "PvtV2Model": ("PvtV2Config", "pooled"),
    "YolosModel": ("YolosConfig", "detection tokens"),
    "VideoMAEModel": ("VideoMAEConfig", "VideoMAELayer, .*time, height and width"),
    "VivitModel": ("VivitConfig", "VivitLayer, .*time, height and width"),
    "VJEPA2Model": ("VJEPA2Config", "VJEPA2Layer, .*time, height and width"),
    "TimesformerModel": ("TimesformerConfig", "TimesformerLayer, .*time, height and width"),
    "XCLIPVisionModel": ("XCLIPVisionConfig", "message token of each frame"),
    "GroupViTVisionModel": ("GroupViTVisionConfig", "group tokens stand after the patches"),
    "Llama4VisionModel": ("Llama4VisionConfig", "class token stands after the patches"),
    "MllamaVisionModel": ("MllamaVisionConfig", "tiles of an image lie end to end"),
    "PixtralVisionModel": ("PixtralVisionConfig", "PixtralAttentionLayer, .*end to end in one sequence"),
    "Glm4vVisionModel": ("Glm4vVisionConfig", "Glm4vVisionBlock, .*end to end in one sequence"),
    "Qwen2VLModel": ("Qwen2VLConfig", "Qwen2VLVisionBlock, .*end to end in one sequence"),
    "Qwen3VLVisionModel": ("Qwen3VLVisionConfig", "Qwen3VLVisionBlock, .*end to end in one sequence"),
    "DeformableDetrModel": ("DeformableDetrConfig", "DeformableDetrEncoderLayer, its attention samples maps"),
    "DetrModel": ("DetrConfig", r"no patch projection leads to .* model\.encoder\.layers, model\.decoder"),
    "LightGlueForKeypointMatching": ("LightGlueConfig", r"no patch projection leads to .* model\.transformer_layers"),
    "SwiftFormerModel": ("SwiftFormerConfig", "SwiftFormerEncoderBlock, it convolves and pools maps"),
    "VideomtForUniversalSegmentation": ("VideomtConfig", "frames of a video go through its last blocks in turn"),
    "Pix2StructVisionModel": ("Pix2StructVisionConfig", "patches of an image of any size are padded"),
    "Gemma4VisionModel": ("Gemma4VisionConfig", "patches of an image of any size are padded"),
    "ViltModel": ("ViltConfig", "ViltLayer, it takes a choice of the patches"),
    "LayoutLMv3Model": ("LayoutLMv3Config", "words and patches share"),
    "BridgeTowerVisionModel": ("BridgeTowerVisionConfig", "batch is not the first dimension"),
    "Florence2VisionBackbone": ("Florence2VisionConfig", "Florence2VisionBlock, its attention runs in windows"),
    "CLIPTextModel": ("CLIPTextConfig", "no patch projection"),
    "ConvNextModel": ("ConvNextConfig", "no sequence of transformer blocks"),
}


# Older releases build these on weights from the network, or of other blocks.
if int(transformers.__version__.partition(".")[0]) < 5:
    for newer in ("MllamaVisionModel", "Qwen2VLModel", "Qwen3VLVisionModel", "DeformableDetrModel", "DetrModel"):
        REFUSED.pop(newer, None)


@pytest.mark.parametrize("name", [name for name in REFUSED if hasattr(transformers, name)])
def test_refused_by_name(name):
    config, reason = REFUSED[name]
    model = on_meta(lambda: getattr(transformers, name)(getattr(transformers, config)()))
    types = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=rf"{name} cannot be patched: .*{reason}"):
        apply_algm(model)
    assert [type(module) for module in model.modules()] == types


def test_a_block_that_lacks_a_part_is_refused_by_it():
    model = build("ViT")
    block = blocks_of(model)[1]
    block.norm_of_mine = block.layernorm_after
    del block.layernorm_after
    expected = r"ViTLayer, ALGM expects a part called layernorm_after or .* or rms_norm2, and found .*norm_of_mine"
    with pytest.raises(ValueError, match=expected):
        apply_algm(model)


def test_a_block_with_an_unknown_argument_is_refused_by_it(monkeypatch):
    model = build("ViT")
    own = type(blocks_of(model)[0])

    def forward(self, hidden_states, compass=None):
        """Stand for the forward of a later release."""

    forward.__module__, forward.__qualname__ = own.forward.__module__, own.forward.__qualname__
    monkeypatch.setattr(own, "forward", forward)
    with pytest.raises(ValueError, match=r"ViTLayer, ALGM does not know what its forward does with .* 'compass'"):
        apply_algm(model)
