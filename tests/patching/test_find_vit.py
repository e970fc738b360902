"""The ViT that is found in a model, and the reasons that other models are refused for."""

from importlib.metadata import PackageNotFoundError

import pytest
import timm
import torch
from timm.models.vision_transformer import Block, ParallelScalingBlock
from torch import nn

from algm_patch import apply_algm, calibrate, remove_algm, tune, visualize
from algm_patch.viz import contact_sheet
from tests.support import models


def vit(**options):
    return models.build("ViT", **options)


class OwnForward(Block):
    def forward(self, x):
        return super().forward(x) + self.norm1(x)


def with_instance_forward():
    model = vit()
    model.blocks[2].forward = lambda x: x
    return model


def with_one_unknown_block():
    model = vit()
    model.blocks[3] = OwnForward(64, 4)
    return model


def with_a_repeated_block():
    model = vit()
    model.blocks[3] = model.blocks[2]
    return model


def with_two_sequences():
    model = vit()
    model.decoder = nn.ModuleList([Block(64, 4), Block(64, 4)])
    return model


def of_blocks_alone():
    return nn.Sequential(*(Block(64, 4) for _ in range(3)))


def with_a_projection(projection):
    model = vit()
    model.patch_embed.proj = projection
    return model


def with_an_instance_forward_of_the_projection():
    model = vit()
    model.patch_embed.proj.forward = lambda x: x
    return model


REFUSED = {
    "windows": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224"),
        "SwinTransformer .*SwinTransformerBlock, .* windows",
    ),
    "windows, newer": (lambda: timm.create_model("swinv2_tiny_window8_256"), "SwinTransformerV2Block, .* windows"),
    "some windows": (lambda: timm.create_model("samvit_base_patch16_224"), "vision_transformer_sam.Block, .* windows"),
    "fused block": (lambda: vit(block_fn=ParallelScalingBlock), "ParallelScalingBlock, .* share one residual"),
    "fused, differential": (
        lambda: timm.create_model("vit_dpwee_patch16_reg1_gap_256"),
        "DiffParallelScalingBlock, .* share one",
    ),
    "forward of its own": (
        lambda: vit(block_fn=OwnForward),
        r"OwnForward has the parts of .* but the halves differ from its forward by",
    ),
    "one such block": (with_one_unknown_block, r"model\.blocks\[3\] cannot be patched: .*OwnForward"),
    "forward on the instance": (with_instance_forward, r"model\.blocks\[2\] .* forward set on the instance"),
    "block used twice": (with_a_repeated_block, r"model\.blocks runs one block more than once"),
    "encoder and decoder": (
        with_two_sequences,
        r"several sequences of blocks, model\.blocks, model\.decoder, of which one",
    ),
    "no patch embedding": (of_blocks_alone, "no patch projection with a regular grid leads to the blocks in model"),
    "no grid": (lambda: with_a_projection(nn.Linear(3, 64)), "patch projection is a Linear, which leaves no grid"),
    "video": (
        lambda: with_a_projection(nn.Conv3d(3, 64, 16)),
        r"model\.patch_embed\.proj cannot be patched: .* a Conv3d",
    ),
    "projection's forward on the instance": (
        with_an_instance_forward_of_the_projection,
        r"model\.patch_embed\.proj .* this Conv2d has a forward set on the instance",
    ),
    "pooling stages": (
        lambda: timm.create_model("pit_ti_224"),
        r"PoolingVisionTransformer .*feeds several sequences of blocks, model\.transformers\[0\]\.blocks, ",
    ),
    "two branches": (lambda: timm.create_model("crossvit_9_240"), "CrossVit .*feeds several sequences of blocks"),
    "convolutional stages": (lambda: timm.create_model("mobilevit_xxs"), "ByobNet .*no patch projection"),
    "unknown blocks": (
        lambda: timm.create_model("cait_xxs24_224"),
        r"LayerScaleBlock, its attention mixes the heads' logits",
    ),
    "unknown blocks beside others": (
        lambda: timm.create_model("xcit_nano_12_p8_224"),
        r"Xcit cannot be patched: in .*XCABlock, it convolves and pools maps",
    ),
    "several sequences, none proved": (
        lambda: nn.ModuleDict({"left": vit(block_fn=OwnForward), "right": vit(block_fn=OwnForward)}),
        r"ModuleDict cannot be patched: .*OwnForward has the parts of a block that ALGM knows, but",
    ),
    "no transformer": (lambda: timm.create_model("resnet18"), "ResNet .*no sequence of transformer blocks"),
    "a head": (lambda: nn.Linear(3, 3), "Linear .*no sequence of transformer blocks"),
    "two ViTs": (
        lambda: nn.ModuleDict({"left": vit(), "right": vit()}),
        r"ModuleDict holds 2 ViTs: 'left' \(VisionTransformer, 5 blocks of width 64\), 'right' .* trunks='all'",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_name_and_left_as_it_was(what):
    build, message = REFUSED[what]
    model = build()
    before = [(type(module), list(module.__dict__)) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        apply_algm(model)
    assert [(type(module), list(module.__dict__)) for module in model.modules()] == before


@pytest.mark.parametrize(
    "call", [apply_algm, remove_algm, tune, calibrate, visualize, contact_sheet], ids=lambda call: call.__name__
)
@pytest.mark.parametrize("given_", ["vit_tiny_patch16_224", [], torch.rand(3, 32, 32)], ids=["name", "list", "image"])
def test_what_is_no_model_is_told_apart_from_one(call, given_):
    """A name, or arguments in the wrong order where no older version took them so."""
    others = () if call in (apply_algm, remove_algm) else (torch.rand(1, 3, 32, 32),)
    with pytest.raises(TypeError, match=r"the model comes first: a torch\.nn\.Module, .*; got "):
        call(given_, *others)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: nn.Sequential(model, nn.Linear(3, 3)),
        lambda model: nn.ModuleDict({"trunk": model, "decoder": nn.Sequential(Block(64, 4), Block(64, 4))}),
        lambda model: nn.ModuleDict({"once": model, "again": model}),
    ],
    ids=["Sequential", "decoder of the same blocks", "shared"],
)
def test_the_one_trunk_is_found(wrap):
    model = vit()
    whole = apply_algm(wrap(model))
    assert whole.algm is model.algm
    model(models.photo())
    assert model.algm.tokens_per_layer[0] < 31


@pytest.mark.parametrize("known", ["1.0.27", None])
def test_a_library_without_metadata_is_known_by_itself_or_taken_as_it_is(monkeypatch, known):
    def missing(library):
        raise PackageNotFoundError(library)

    monkeypatch.setattr("algm_patch.adapters.libraries.version", missing)
    monkeypatch.setattr(timm, "__version__", known)
    assert apply_algm(vit()).algm.clap_layer == 1


def test_an_old_library_without_metadata_is_refused(monkeypatch):
    def missing(library):
        raise PackageNotFoundError(library)

    monkeypatch.setattr("algm_patch.adapters.libraries.version", missing)
    monkeypatch.setattr(timm, "__version__", "0.9.2")
    with pytest.raises(ValueError, match=r"it comes from timm 0\.9\.2"):
        apply_algm(vit())
