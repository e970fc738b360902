"""mmsegmentation's backbones and blocks that are not patched, and the reasons that they are given."""

from typing import Any

import pytest
from torch import nn

from algm_patch import apply_algm
from tests.support.models_mmseg import BACKBONES, backbone, mmseg

PYRAMID = {"embed_dims": (8, 16), "num_heads": (1, 2), "depths": (2, 2), "strides": (4, 2), "mlp_ratios": (2, 2)}


NOT_PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "SwinTransformer": ("swin.SwinBlock, its attention runs in windows", {"embed_dims": 12, "num_heads": (1, 2, 4, 8)}),
    "MixVisionTransformer": ("mit.TransformerEncoderLayer, its attention reduces the keys", {"embed_dims": 8}),
    "PCPVT": ("twins.GSAEncoderLayer, its attention reduces the keys", {**PYRAMID, "sr_ratios": (8, 4)}),
    "SVT": (
        "twins.LSAEncoderLayer, its attention runs in windows",
        {**PYRAMID, "sr_ratios": (8, 4), "windiow_sizes": (7, 7)},
    ),
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_windowed_and_hierarchical_backbones_are_refused(name):
    reason, options = NOT_PLAIN[name]
    model = getattr(mmseg().backbones, name)(**options)
    with pytest.raises(ValueError, match=f"{name} cannot be patched: in mmseg.models.backbones.{reason}"):
        apply_algm(model)


def test_a_block_with_a_forward_of_its_own_is_refused():
    """SegViT's shrink layer is such a block: it drops queries on the way."""
    model = backbone("ViT")
    parent: Any = type(model.layers[0])

    class ShrinkLayer(parent):
        def forward(self, x):
            return super().forward(x)[:, ::2]

    model.layers[3].__class__ = ShrinkLayer
    with pytest.raises(
        ValueError, match=r"model\.layers\[3\] cannot be patched: .*ShrinkLayer has the parts of a block"
    ):
        apply_algm(model)
    for block in model.layers:
        block.__class__ = ShrinkLayer
    with pytest.raises(ValueError, match=r"model\.layers\[0\] cannot be patched: .*ShrinkLayer has the parts of"):
        apply_algm(model)
    assert type(model.layers[0]) is ShrinkLayer


@pytest.fixture(params=BACKBONES)
def family(request):
    return request.param


class Unknown(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x, identity=None, **kwargs):
        return self.attention(x, identity=identity)


def test_an_attention_of_ones_own_is_refused(family):
    """Such an attention could ignore the mask silently."""
    model = backbone(family)
    model.layers[1].attn = Unknown(model.layers[1].attn)
    with pytest.raises(ValueError, match=r"model\.layers\[1\] cannot be patched: .* of its attention, Unknown"):
        apply_algm(model)
