"""mmsegmentation's own interface on patched models: backbones, and whole segmentors by their configs."""

import pytest
import torch
from models import photo
from models_mmseg import BACKBONES, SEGMENTORS, backbone, mmseg, segmentor
from torch import nn

from algm_patch import apply_algm, remove_algm
from algm_patch.functional import TokenMap

SETTINGS = {"clap_layer": 1, "gbm_layers": [3], "tau": 0.5}
VITS = [family for family in BACKBONES if family.startswith("ViT")]


@pytest.fixture(params=BACKBONES)
def family(request):
    return request.param


def block_outputs(model, image):
    """Every block's output on the full grid, by running the patched blocks one at a time."""
    x, grid = model.patch_embed(image)
    x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], 1)
    if hasattr(model, "_pos_embeding"):
        x = model._pos_embeding(x, grid, model.pos_embed)
    elif hasattr(model, "pos_embed"):
        x = x + model.pos_embed
    x = x if getattr(model, "with_cls_token", True) else x[:, 1:]
    x = model.pre_ln(x) if getattr(model, "pre_norm", False) else x
    outputs = [x := block(x) for block in model.layers]
    return [*outputs[:-1], model.norm1(outputs[-1]) if model.final_norm else outputs[-1]]


@torch.no_grad()
@pytest.mark.parametrize("indices", [-1, 0, [0, 2, 4], (1, 3), [4]])
def test_out_indices(family, indices, monkeypatch):
    model, image = backbone(family, out_indices=indices), photo()
    apply_algm(model, **SETTINGS)
    outputs = block_outputs(model, image)
    unmerged = []
    monkeypatch.setattr(TokenMap, "unmerge", lambda self, x, real=TokenMap.unmerge: unmerged.append(1) or real(self, x))
    features = model(image)
    assert len(unmerged) == len({*model.out_indices, 4})
    assert len(features) == len(model.out_indices)
    for found, i in zip(features, model.out_indices, strict=True):
        torch.testing.assert_close(found, outputs[i][:, -30:].mT.unflatten(2, (6, 5)))
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < outputs[0].shape[1]


@torch.no_grad()
def test_the_class_token_and_the_embedding_are_output_as_ever():
    model, image = backbone("ViT", out_indices=[1, 4], output_cls_token=True, out_origin=True), photo()
    origin = model(image)[0]
    apply_algm(model, **SETTINGS)
    outputs = block_outputs(model, image)
    (patches, cls), *features = model(image)
    assert torch.equal(patches, origin[0])
    assert torch.equal(cls, origin[1])
    for (patches, cls), i in zip(features, (1, 4), strict=True):
        torch.testing.assert_close(patches, outputs[i][:, 1:].mT.unflatten(2, (6, 5)))
        torch.testing.assert_close(cls, outputs[i][:, 0])


@torch.no_grad()
@pytest.mark.parametrize("pad", ["corner", "same"])
@pytest.mark.parametrize("size", [(96, 80), (90, 70), (33, 100), (16, 16), (130, 50)])
def test_images_of_any_size_are_padded_to_whole_patches(pad, size):
    model = backbone("ViT", patch_pad=pad)
    apply_algm(model, **SETTINGS)
    height, width = -(-size[0] // 16), -(-size[1] // 16)
    assert model(torch.randn(1, 3, *size))[0].shape == (1, 64, height, width)
    assert f"grid {height}x{width} + 1 prefix" in repr(model.algm)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_proportional_attention_is_attention_to_the_copies(family, training, gradients):
    """Where no bias tells them apart. PyTorch has several ways of attention, by mode: none may lose the key bias."""
    model, image = backbone(family), photo()
    for name, parameter in model.named_parameters():
        if name.endswith("bias_table"):
            nn.init.zeros_(parameter)
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5)
    model.train(training)
    with torch.set_grad_enabled(gradients):
        before, expected = block_outputs(model, image)[:2]
        remove_algm(model)
        torch.testing.assert_close(model.layers[1](before), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before, expected, atol=1e-2)


@pytest.mark.parametrize("proportional", [True, False])
@torch.no_grad()
def test_padding_mask_is_an_additive_bias(proportional):
    """What nn.MultiheadAttention does with a float mask, in the words of attention."""
    model, image = backbone("ViT"), photo()
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5, proportional_attention=proportional)
    seen = []
    block = model.layers[2]
    block.attn.register_forward_hook(lambda _, args, kwargs, output: seen.append((args[0], output)), with_kwargs=True)
    identities = []
    block.norm1.register_forward_pre_hook(lambda _, args: identities.append(args[0]))
    model(image)
    (x, output), (identity,) = *seen, identities
    mha = block.attn.attn
    q, k, v = nn.functional.linear(x, mha.in_proj_weight, mha.in_proj_bias).chunk(3, -1)
    q, k, v = (y.unflatten(-1, (4, -1)).transpose(1, 2) for y in (q, k, v))
    bias = model.algm.token_map.sizes.log()[:, None, None] if proportional else 0
    y = ((q @ k.mT) / 4 + bias).softmax(-1) @ v
    torch.testing.assert_close(output, identity + mha.out_proj(y.transpose(1, 2).flatten(2)), atol=1e-5, rtol=1e-5)
    assert x.shape[1] < 31


def gradients(model, image):
    model.zero_grad()
    sum(level.square().mean() for level in model(image)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", VITS)
def test_gradients_with_its_own_checkpointing(name):
    found = []
    for with_cp in (False, True):
        model = backbone(name, with_cp=with_cp)
        apply_algm(model, **SETTINGS)
        runs = []
        for block in model.layers:
            block.ffn.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        found.append(gradients(model, photo()))
        assert len(runs) == (10 if with_cp else 5)
        assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < 30
    plain, recomputed = found
    for parameter, expected in plain.items():
        torch.testing.assert_close(recomputed[parameter], expected)
        assert expected.any() or (parameter == "cls_token" and name == "ViT, no class token")


def test_checkpointing_turned_on_by_the_runner():
    """After the patch, as mmengine's Runner does when training begins."""
    models = [apply_algm(backbone("ViT"), **SETTINGS) for _ in range(2)]
    from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing

    turn_on_activation_checkpointing(models[1], [f"layers.{i}" for i in range(5)])
    plain, recomputed = (gradients(model, photo().requires_grad_()) for model in models)
    for name, expected in plain.items():
        torch.testing.assert_close(recomputed[name], expected)


@torch.no_grad()
@pytest.mark.parametrize("name", SEGMENTORS)
def test_segmentors_whole(name):
    model, image = segmentor(name), photo()
    expected, features = model(image), model.extract_feat(image)
    head = {part: type(module) for part, module in model.decode_head.named_modules()}
    assert apply_algm(model, **SETTINGS) is model
    assert model.backbone.algm is model.algm
    found = model(image)
    assert found.shape == expected.shape
    assert not torch.equal(found, expected)
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < 30
    assert [x.shape for x in model.extract_feat(image)] == [x.shape for x in features]
    assert {part: type(module) for part, module in model.decode_head.named_modules()} == head
    assert "a method that ALGM does not know" not in repr(model.algm)
    model.algm.tau, model.algm.gbm_layers = 2.0, []
    assert torch.equal(model(image), expected)
    remove_algm(model)
    assert torch.equal(model(image), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", SEGMENTORS)
def test_segmentors_predict(name):
    """Whole images, or slides over larger ones."""
    model = apply_algm(segmentor(name), **SETTINGS)
    slides = model.test_cfg.mode == "slide"
    size = (130, 100) if slides else (90, 70)
    crops = []
    model.backbone.register_forward_hook(lambda *_: crops.append(model.algm.tokens_per_layer))
    (sample,) = model(torch.randn(1, 3, *size), mode="predict")
    assert sample.seg_logits.data.shape == (3, *size)
    assert len(crops) == (4 if slides else 1)
    assert all(tokens[-1] < 30 for tokens in crops)


@pytest.mark.parametrize("name", SEGMENTORS)
def test_segmentors_learn(name):
    """Every head's loss reaches the patch embedding through merged tokens."""
    model = segmentor(name)
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = torch.randint(3, (2, 1, 96, 80))
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
    apply_algm(model, **SETTINGS)
    model.train()
    losses = {key: loss for key, loss in model(photo(), samples, mode="loss").items() if key.endswith("loss_ce")}
    auxiliary = {"setr_naive": 3, "setr_pup": 3, "setr_mla": 4}.get(name, 0)
    assert len(losses) == 1 + auxiliary
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0]
    for loss in losses.values():
        model.zero_grad()
        loss.backward(retain_graph=True)
        gradient = model.backbone.patch_embed.projection.weight.grad
        assert gradient.isfinite().all()
        assert gradient.any()


@torch.no_grad()
def test_side_adapter_network():
    """A ViT in a head: queries before the patches, and features of CLIP added between the blocks."""
    models = mmseg()
    from mmengine import ConfigDict

    side = models.decode_heads.san_head.SideAdapterNetwork(
        clip_channels=64,
        embed_dims=64,
        num_queries=5,
        fusion_index=[0, 2],
        cfg_encoder=ConfigDict(num_encode_layer=4, num_heads=4, mlp_ratio=2),
        cfg_decoder=ConfigDict(num_heads=2, num_layers=1, embed_channels=32, mlp_channels=32, num_mlp=2, rescale=True),
    ).eval()
    both = nn.ModuleDict({"backbone": backbone("ViT"), "side": side})
    with pytest.raises(ValueError, match=r"2 ViTs.*: model\.backbone \(Vis.*, model\.side \(SideAdapterNetwork\)"):
        apply_algm(both)
    clip = [(torch.randn(2, 64, 6, 5), torch.randn(2, 64)) for _ in side.fusion_index]
    (expected,), _ = side(photo(), clip, [])
    apply_algm(side, clap_layer=1, gbm_layers=[], tau=-1.0)
    (found,), _ = side(photo(), clip, [])
    assert found.shape == expected.shape == (2, 5, 6, 5)
    assert "grid 6x5 + 5 prefix" in repr(side.algm)
    assert side.algm.tokens_per_layer == [35 - 6 * 3] * 4
    assert not torch.equal(found, expected)
    side.algm.tau = 2.0
    assert torch.equal(side(photo(), clip, [])[0][0], expected)


PYRAMID = {"embed_dims": (8, 16), "num_heads": (1, 2), "depths": (2, 2), "strides": (4, 2), "mlp_ratios": (2, 2)}
NOT_PLAIN = {
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
    """SegViT's shrink layer is one: it drops queries on the way."""
    model = backbone("ViT")
    parent = type(model.layers[0])

    class ShrinkLayer(parent):
        def forward(self, x):
            return super().forward(x)[:, ::2]

    model.layers[3].__class__ = ShrinkLayer
    with pytest.raises(ValueError, match=r"model\.layers\[3\] cannot be patched: .*ShrinkLayer computes its output in"):
        apply_algm(model)
    for block in model.layers:
        block.__class__ = ShrinkLayer
    with pytest.raises(ValueError, match=r"VisionTransformer cannot be patched: .*ShrinkLayer computes its output in"):
        apply_algm(model)
    assert type(model.layers[0]) is ShrinkLayer


class Unknown(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x, identity=None, **kwargs):
        return self.attention(x, identity=identity)


def test_an_attention_of_ones_own_is_refused(family):
    """It could leave out the mask without a word."""
    model = backbone(family)
    model.layers[1].attn = Unknown(model.layers[1].attn)
    with pytest.raises(ValueError, match=r"model\.layers\[1\] cannot be patched: .* of its attention, Unknown"):
        apply_algm(model)
