"""Register the encoders and models of transformers that run its layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .huggingface_parts import arguments_by_name, parameter_names
from .libraries import transformers_path
from .registry import reads_blocks
from .unpatched import unpatched

RUNNERS = (
    "vit.ViTModel",
    "vit.ViTEncoder",
    "deit.DeiTModel",
    "deit.DeiTEncoder",
    "ijepa.IJepaModel",
    "ijepa.IJepaEncoder",
    "vit_msn.ViTMSNModel",
    "vit_msn.ViTMSNEncoder",
    "vit_mae.ViTMAEModel",
    "vit_mae.ViTMAEEncoder",
    "pixio.PixioModel",
    "pixio.PixioEncoder",
    "beit.BeitModel",
    "dinov2.Dinov2Encoder",
    "dinov2_with_registers.Dinov2WithRegistersEncoder",
    "dinov3_vit.DINOv3ViTModel",
    "dinov3_vit.DINOv3ViTEncoder",
    "sapiens2.Sapiens2Encoder",
    "dpt.DPTViTEncoder",
    "clip.CLIPEncoder",
    "siglip.SiglipEncoder",
    "altclip.AltCLIPEncoder",
    "chinese_clip.ChineseCLIPVisionEncoder",
    "clipseg.CLIPSegEncoder",
    "metaclip_2.MetaClip2Encoder",
    "owlvit.OwlViTEncoder",
    "owlv2.Owlv2Encoder",
    "siglip2.Siglip2Encoder",
    "aimv2.Aimv2Encoder",
    "ovis2.Ovis2VisionEncoder",
    "audio_spectrogram_transformer.ASTModel",
    "audio_spectrogram_transformer.ASTEncoder",
    "blip.BlipEncoder",
    "blip_2.Blip2Encoder",
    "instructblip.InstructBlipEncoder",
    "instructblipvideo.InstructBlipVideoEncoder",
    "flava.FlavaEncoder",
    "git.GitVisionEncoder",
    "janus.JanusVisionEncoder",
    "kosmos2.Kosmos2VisionEncoder",
    "tipsv2.Tipsv2VisionEncoder",
    "internvl.InternVLVisionEncoder",
    "qianfan_ocr.QianfanOCRVisionModel",
    "vitpose_backbone.VitPoseBackboneEncoder",
    "radio.RadioEncoder",
    "mlcd.MLCDEncoder",
    "step3p7.Step3p7VisionModel",
    "idefics2.Idefics2Encoder",
    "idefics3.Idefics3Encoder",
    "smolvlm.SmolVLMEncoder",
    "phi4_multimodal.Phi4MultimodalVisionEncoder",
)


@reads_blocks("transformers.models.idefics.vision.IdeficsVisionEncoder.forward")
@reads_blocks(*(f"{transformers_path(name)}.forward" for name in RUNNERS))
def layers_read(runner: Any, *args: Any, **kwargs: Any) -> Iterable[int]:
    """Return all layers if the runner collects hidden states itself, else the last.

    Newer ones collect them by hooks or by forwards set on the layers, which are seen without this.
    """
    count = len(layers_of(runner))
    return range(count) if collects_hidden_states(runner, args, kwargs) else [count - 1]


def layers_of(runner: Any) -> Any:
    """Return the layers that a module runs: its own, or its encoder's, which tells by itself what it reads."""
    for name in ("layer", "layers", "blocks"):
        if hasattr(runner, name):
            return getattr(runner, name)
    return layers_of(runner.encoder if hasattr(runner, "encoder") else runner.model)


def collects_hidden_states(runner: Any, args: Any, kwargs: Any) -> bool:
    """Return whether a runner, called with these arguments, collects hidden states in its own forward."""
    if "output_hidden_states" not in parameter_names(unpatched(type(runner)).forward):
        return False
    asked = arguments_by_name(runner, args[1:], kwargs).get("output_hidden_states")
    return bool(getattr(getattr(runner, "config", None), "output_hidden_states", False) if asked is None else asked)
