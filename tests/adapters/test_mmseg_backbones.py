"""mmsegmentation's backbones, patched: their features, their attention, their training."""

import pytest
import torch
from timm.models import VisionTransformer
from torch import nn

from algm_patch import apply_algm, remove_algm
from tests.support.contract import SETTINGS
from tests.support.counting import record_unmerges
from tests.support.models import photo
from tests.support.models_mmseg import BACKBONES, backbone
from tests.support.training import assert_same, gradients

VITS = [family for family in BACKBONES if family.startswith("ViT")]


@pytest.fixture(params=BACKBONES)
def family(request):
    return request.param


def block_outputs(model, image):
    """Run the blocks one at a time. Return what each leaves, on the full grid."""
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
    unmerged = record_unmerges(monkeypatch)
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
    """No bias tells the copies apart here. PyTorch computes attention in several ways: none may lose the key bias."""
    model, image = backbone(family), photo()
    for name, parameter in model.named_parameters():
        if name.endswith("bias_table"):
            nn.init.zeros_(parameter)
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5, restore=False)
    model.train(training)
    with torch.set_grad_enabled(gradients):
        before, expected = block_outputs(model, image)[:2]
        remove_algm(model)
        torch.testing.assert_close(model.layers[1](before), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before, expected, atol=1e-2)


@pytest.mark.parametrize("proportional", [True, False])
@torch.no_grad()
def test_padding_mask_is_an_additive_bias(proportional):
    """Compare with attention written out: nn.MultiheadAttention adds a float mask to the logits."""
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


def gradients_of(model, image):
    return gradients(model, sum(level.square().mean() for level in model(image)))


@pytest.mark.parametrize("name", VITS)
def test_gradients_with_its_own_checkpointing(name):
    found = []
    for with_cp in (False, True):
        model = backbone(name, with_cp=with_cp)
        apply_algm(model, **SETTINGS)
        runs: list[int] = []
        for block in model.layers:
            block.ffn.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        found.append(gradients_of(model, photo()))
        assert len(runs) == (10 if with_cp else 5)
        assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < 30
    plain, recomputed = found
    assert len(plain) == len(list(model.parameters()))
    assert_same(recomputed, plain)
    for parameter, expected in plain.items():
        assert expected.any() or (parameter == "cls_token" and name == "ViT, no class token")


def test_checkpointing_turned_on_by_the_runner():
    """mmengine's Runner does so when training begins, after the patch."""
    models = [apply_algm(backbone("ViT"), **SETTINGS) for _ in range(2)]
    from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing

    turn_on_activation_checkpointing(models[1], [f"layers.{i}" for i in range(5)])
    plain, recomputed = (gradients_of(model, photo().requires_grad_()) for model in models)
    assert len(plain) == len(list(models[0].parameters()))
    assert_same(recomputed, plain)


class Fork(VisionTransformer):
    """Stands for SETR's trunk: under the path of mmsegmentation's, but its blocks are elsewhere."""

    def forward(self, image):
        x, outputs = self._pos_embed(self.patch_embed(image)), []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return tuple(outputs)


@torch.no_grad()
def test_a_fork_may_have_another_trunk_at_the_same_path(monkeypatch):
    monkeypatch.setattr(Fork.forward, "__module__", "mmseg.models.backbones.vit")
    monkeypatch.setattr(Fork.forward, "__qualname__", "VisionTransformer.forward")
    model, image = Fork(img_size=(96, 80), embed_dim=64, depth=5, num_heads=4).eval(), photo()
    expected = model(image)
    apply_algm(model, **{**SETTINGS, "tau": 1.05, "gbm_layers": []})
    assert all(map(torch.equal, model(image), expected))
    apply_algm(model, **SETTINGS)
    assert [output.shape for output in model(image)] == [output.shape for output in expected]
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < 31
