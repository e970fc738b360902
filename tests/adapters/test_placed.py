"""Blocks of unknown classes that are told of places, patched: batches, training, and what they are given."""

import pytest
import torch
from torch import nn

from algm_patch import apply_algm
from algm_patch.adapters import LayerTokens
from algm_patch.adapters.registry import proof_of
from algm_patch.functional import TokenMap
from tests.support.attention_of_positions import HEADS, WIDTH, PosAttention, Rope2d, RopeAttention
from tests.support.batches import CLOSE, unlike
from tests.support.contract import SETTINGS
from tests.support.models import photo
from tests.support.models_of_positions import KINDS, BiasBlock, ListBlock, PosBlock, build

every_kind = pytest.mark.parametrize("kind", KINDS)


@torch.no_grad()
@every_kind
@pytest.mark.parametrize("proportional", [True, False])
def test_images_of_a_batch_are_merged_as_they_are_alone(kind, proportional):
    model, image = apply_algm(build(kind), **SETTINGS, proportional_attention=proportional), unlike(photo())
    together = model(image)
    sizes = model.algm.last_pass.blocks[4].after.sizes
    assert len(set(sizes.gt(0).sum(1).tolist())) > 1
    alone = torch.cat([model(one[None]) for one in image])
    torch.testing.assert_close(together, alone, **CLOSE)


@every_kind
@pytest.mark.parametrize("batch", ["image", "min"])
def test_training_gives_every_weight_its_gradient(kind, batch):
    model = build(kind).train()
    expected = gradients(model, photo())
    found = gradients(apply_algm(model, **SETTINGS, batch=batch), unlike(photo()))
    assert {name for name, grad in found.items() if grad is not None} == {
        name for name, grad in expected.items() if grad is not None
    }
    assert all(grad is None or grad.isfinite().all() for grad in found.values())


def gradients(model, image):
    model.zero_grad(set_to_none=True)
    model(image).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


class DroppingBlock(PosBlock):
    """Leaves images out of a branch in training, above a rate of 0.1."""

    def __init__(self, attn, rate):
        super().__init__(attn)
        self.drop_path1, self.sample_drop_ratio = nn.Identity(), rate

    def forward(self, x, pos=None):
        if not self.training or self.sample_drop_ratio <= 0.1:
            return super().forward(x, pos)
        for half in (self.attend, self.think):
            some = torch.randperm(len(x))[: max(int(len(x) * (1 - self.sample_drop_ratio)), 1)]
            x = x.index_add(0, some, half(x[some], None if pos is None else pos[some]), alpha=len(x) / len(some))
        return x

    def attend(self, x, pos):
        return self.ls1(self.attn(self.norm1(x), pos=pos))

    def think(self, x, pos):
        return self.ls2(self.mlp(self.norm2(x)))


def dropping(rate):
    return DroppingBlock(PosAttention(rope=Rope2d()), rate)


def listed(rate):
    block = ListBlock(RopeAttention(fused=True))
    block.sample_drop_ratio = rate
    return block


def positions():
    return torch.randint(5, (4, 7, 2))


def rotations():
    """Return sines and cosines of six patches that differ from image to image."""
    angles = torch.randn(4, 1, 6, WIDTH // HEADS)
    return angles.sin(), angles.cos()


@torch.no_grad()
@pytest.mark.parametrize(("block", "given"), [(dropping(0.5), positions), (listed(0.5), rotations)])
def test_images_that_a_branch_leaves_out_keep_their_places(block, given):
    """The others are attended to as in the whole batch, with their own merged tokens and places."""
    adapter, place = proof_of(block).adapter, given()
    labels = torch.tensor([[0, 1, 1, 2, 3, 4, 4], [0, 1, 2, 3, 3, 3, 4], [0, 1, 2, 2, 2, 3, 4], [0, 1, 1, 2, 2, 3, 4]])
    token_map = TokenMap(labels, torch.stack([row.bincount() for row in labels]).float())
    tokens, x = LayerTokens(token_map, token_map.key_bias, 1), torch.randn(4, 5, WIDTH)
    branch = adapter.attention_half(block.eval(), x, tokens, place) - x
    torch.manual_seed(0)
    some = torch.randperm(4)[:2]
    torch.manual_seed(0)
    found = adapter.attention_half(block.train(), x, tokens, place)
    torch.testing.assert_close(found, x.index_add(0, some, branch[some], alpha=2), **CLOSE)


@pytest.mark.parametrize("block", [dropping, listed])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5])
def test_stochastic_depth_is_the_blocks_own(block, rate):
    assert proof_of(block(rate)).adapter is not None


class UnfilledLinear(nn.Linear):
    """Multiplies its bias by a mask that is not a number until weights are loaded."""

    bias_mask: torch.Tensor

    def __init__(self, width):
        super().__init__(width, 3 * width)
        self.register_buffer("bias_mask", torch.full([3 * width], torch.nan))

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias * self.bias_mask)


def test_a_block_is_proved_before_its_weights_are_loaded():
    block = dropping(0.0)
    block.attn.qkv = UnfilledLinear(WIDTH)
    assert proof_of(block).adapter is not None
    assert block.attn.qkv.bias_mask.isnan().all()


@torch.no_grad()
def test_positions_may_be_left_out():
    model, image = build("positions"), photo()
    for block in model.blocks:
        block.attn.rope = None
    model.takes = ""
    apply_algm(model, **SETTINGS)
    model(image)
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < 31


class MaskedBlock(BiasBlock):
    """Takes a mask that it was not proved with."""

    def forward(self, x, rel_pos_bias=None, attn_mask=None):
        return super().forward(x, rel_pos_bias if attn_mask is None else attn_mask)


def test_an_argument_that_was_not_proved_is_refused_by_name():
    model = build("bias of all blocks", depth=3)
    for index, block in enumerate(model.blocks):
        model.blocks[index] = MaskedBlock(block.attn, scaled=False).eval()
    x = apply_algm(model, **{**SETTINGS, "gbm_layers": [2]}).patch_embed(photo()).flatten(2).mT
    x = model.blocks[0](torch.cat([model.cls_token.expand(2, -1, -1), x], 1))
    with pytest.raises(ValueError, match=r"MaskedBlock was given attn_mask beside its tokens.*Leave it out"):
        model.blocks[1](x, attn_mask=torch.zeros(31, 31))


@torch.no_grad()
def test_lists_of_one_tensor_run_and_of_several_are_refused():
    model, image = build("rotations of the patches"), photo()
    apply_algm(model, **SETTINGS)
    x = torch.cat([model.cls_token.expand(2, -1, -1), model.patch_embed(image).flatten(2).mT], 1)
    (rope,) = model.inputs(2, (6, 5)).values()
    (found,) = model.blocks[0]([x], [rope])
    assert found.shape == x.shape
    with pytest.raises(ValueError, match="ListBlock was given a list of 2 tensors"):
        model.blocks[1]([found, found], [rope, rope])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["rotations of the patches", "positions", "bias of each block"])
def test_a_compiler_leaves_the_output_as_it_is(kind):
    torch._dynamo.reset()
    model, image = apply_algm(build(kind, depth=3), clap_layer=1, gbm_layers=[2], tau=0.5), photo()
    expected = model(image)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(image), expected, **CLOSE)
