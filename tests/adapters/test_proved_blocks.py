"""Blocks that are proved do what registered ones do: unlike images, keys to compare, runners, arguments, compilers."""

from typing import Any

import pytest
import torch
from torch import nn

from algm_patch import apply_algm
from algm_patch.adapters import registry
from algm_patch.core.layer_tokens import LayerTokens
from tests.support import models, mutant_attention, plain_vits
from tests.support.contract import SETTINGS
from tests.support.plain_parts import DIM, HEADS
from tests.support.plain_vits import KINDS, DinoBlock, MaeBlock, TorchvisionBlock

PARTS = ["timm-like", "MAE-like", "BEiT-like", "Segmenter-like", "DINOv2-like", "own names"]
BY_SOFTMAX = mutant_attention.HARMLESS["another scale"](MaeBlock)


@torch.no_grad()
@pytest.mark.parametrize("kind", [*KINDS, "attention by its softmax"])
def test_unlike_images_in_a_batch_merge_as_they_do_alone(kind):
    model = apply_algm(plain_vits.build(KINDS.get(kind, BY_SOFTMAX), depth=4), **SETTINGS)
    images = torch.cat([models.photo(batch=1, seed=0), models.photo(batch=1, seed=1), torch.zeros(1, 3, 96, 80)])
    together = model(images)
    assert len(set(model.algm.token_map.sizes.gt(0).sum(1).tolist())) > 1
    for image, output in zip(images.split(1), together.split(1), strict=True):
        torch.testing.assert_close(model(image), output, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("compare", ["query", "key", "value"])
@pytest.mark.parametrize("kind", PARTS)
def test_what_attention_makes_of_its_tokens_can_be_compared(kind, compare, monkeypatch):
    model = plain_vits.build(KINDS[kind])
    image = models.photo()
    expected: list[Any] = []
    attention: Any = getattr(model.blocks[0], "attn", None) or model.blocks[0].self_attn
    for name in ("qkv", f"{compare[0]}_proj"):
        if hasattr(attention, name):
            getattr(attention, name).register_forward_hook(lambda *call: expected.append(call[2]))
    model(image)
    third = ["query", "key", "value"].index(compare)
    features = expected[0] if expected[0].shape[2] == DIM else expected[0].chunk(3, -1)[third]
    seen: list[Any] = []

    def plan(x, *args, **kwargs):
        seen.append(x)
        raise InterruptedError

    monkeypatch.setattr("algm_patch.patching.forward_pass.plan_clap", plan)
    apply_algm(model, gbm_layers=[2], compare=compare)
    with pytest.raises(InterruptedError):
        model(image)
    assert torch.equal(seen[0], features)


@pytest.mark.parametrize("block", [TorchvisionBlock, BY_SOFTMAX])
def test_keys_that_no_module_leaves_are_refused(block):
    with pytest.raises(ValueError, match=r"compare='key': in block 1 of Vit .* there is no one module"):
        apply_algm(plain_vits.build(block), gbm_layers=[2], compare="key")


@torch.no_grad()
def test_a_list_of_one_tensor_runs():
    model = plain_vits.build(DinoBlock)
    x = torch.randn(2, 3, DIM)
    expected = model.blocks[0]([x])[0]
    apply_algm(model, gbm_layers=[2])
    model.patches(torch.zeros(2, 3, 8, 16))
    assert torch.equal(model.blocks[0]([x])[0], expected)


# -- torch's encoder


class Encoder(nn.Module):
    """A ViT that has torch's encoder."""

    def __init__(self, depth: int = 4, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, DIM, 8, 8)
        layer = nn.TransformerEncoderLayer(DIM, HEADS, 2 * DIM, **{"batch_first": True, "norm_first": True, **options})
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(DIM), enable_nested_tensor=False)

    def forward(self, image: torch.Tensor, **inputs: Any) -> torch.Tensor:
        return self.encoder(self.stem(image).flatten(2).mT, **inputs)


@torch.no_grad()
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_torchs_encoder_merges_and_reads_its_last_layer_alone(norm_first, activation):
    torch.manual_seed(0)
    model: Any = Encoder(norm_first=norm_first, activation=activation).eval()
    image = plain_vits.image_of_equal_patches()
    expected = model(image)
    apply_algm(model, gbm_layers=[2], tau=0.9999, gbm_tau=0.9999)
    torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-4)
    assert model.algm.tokens_per_layer == [9, 9, 9, 9]
    assert "full grid given back after layer 4" in str(model.algm)


def test_torchs_encoder_trains():
    torch.manual_seed(0)
    model: Any = apply_algm(Encoder(dropout=0.1), clap_layer=1, gbm_layers=[3])
    model(models.photo()).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@torch.no_grad()
def test_masks_of_torchs_encoder_are_refused_where_tokens_merge():
    model: Any = apply_algm(Encoder().eval(), gbm_layers=[2])
    with pytest.raises(ValueError, match="was given src_mask beside its tokens"):
        model(models.photo(), mask=torch.zeros(120, 120))


class Told(MaeBlock):
    """A block that may be told to leave out its MLP, and how much to scale it."""

    def forward(self, x, feeds=True, scale=1.0):
        x = x + self.attend(self.norm1(x))
        return x + scale * self.feed(self.norm2(x)) if feeds else x


@pytest.mark.parametrize("told", [{"feeds": False}, {"feeds": None}, {"scale": 2.0}, {"scale": torch.ones(())}])
def test_arguments_that_change_what_was_proved_are_refused(told):
    adapter: Any = registry.adapter_of(Told())
    tokens = LayerTokens(None, None, 0)
    with pytest.raises(ValueError, match=f"was given {next(iter(told))} beside its tokens"):
        adapter.attention_half(Told(), torch.randn(1, 4, DIM), tokens, **told)
    adapter.attention_half(Told(), torch.randn(1, 4, DIM), tokens, True, scale=1.0)


class Itself(MaeBlock):
    """A block whose forward calls the module otherwise than ``self``."""

    def forward(this, tokens):  # noqa: N805
        return MaeBlock.forward(this, tokens)


class ByName(plain_vits.Vit):
    """A ViT that gives its blocks their tokens by name."""

    def forward(self, image):
        x = self.patches(image).flatten(2).mT
        for block in self.blocks:
            x = block(tokens=x)
        return x


@torch.no_grad()
def test_tokens_that_are_given_by_name_merge():
    model: Any = apply_algm(ByName(Itself(), Itself(), Itself()).eval(), gbm_layers=[2], tau=0.5)
    model(models.photo())
    assert model.algm.tokens_per_layer[-1] < 120


def test_torchs_encoder_with_the_batch_second_is_refused():
    with pytest.raises(ValueError, match=r"the batch is not the first dimension of the tokens \(batch_first\)"):
        apply_algm(Encoder(batch_first=False), gbm_layers=[2])


# -- compilers


@torch.no_grad()
@pytest.mark.parametrize("kind", ["timm-like", "DINOv2-like", "attention by its softmax"])
def test_compiled_models_merge_as_others_do(kind):
    torch.compiler.reset()
    model = apply_algm(plain_vits.build(KINDS.get(kind, BY_SOFTMAX)), gbm_layers=[2])
    image = models.photo()
    expected = model(image)
    found = torch.compile(model, backend="eager")(image)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_training_reaches_every_parameter(kind):
    model = apply_algm(plain_vits.build(KINDS[kind], drop=0.3), gbm_layers=[2]).train()
    model(models.photo()).square().mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
