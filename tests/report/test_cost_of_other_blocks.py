"""The cost of blocks of other libraries is read off their parts, or the error says why not."""

import pytest
import timm
import torch
from torch import nn

from algm_patch import Adapter, apply_algm, register, remove_algm, tune
from algm_patch.adapters import registry
from algm_patch.adapters.cost import BlockCost, block_cost
from algm_patch.patching.find_vit import find_vit
from algm_patch.report.cost import embedding_cost, vit_cost
from algm_patch.tuning.bench import Bench
from algm_patch.viz import panels
from tests.support.models import build, photo


class Mlp(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))


class Mixer(nn.Module):
    """Attention that is narrower than its tokens, and whose output layer is registered first."""

    def __init__(self, width, heads):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * heads * 8)
        self.out = nn.Sequential(nn.Linear(heads * 8, width), nn.Dropout())


class NarrowAttention(Mixer):
    pass


def block_of(**parts):
    block = nn.Module()
    for name, part in parts.items():
        setattr(block, name, part)
    return block


MLP = 2 * 3 * 64 * 64
BLOCKS = {
    "attn": (lambda: block_of(attn=Mixer(64, 4), mlp=Mlp(64)), BlockCost(4 * 64 * 32, MLP, 4 * 32)),
    "by its class": (lambda: block_of(mixer=NarrowAttention(64, 4), mlp=Mlp(64)), BlockCost(4 * 64 * 32, MLP, 4 * 32)),
    "inside": (lambda: block_of(a=block_of(attention=Mixer(64, 4)), b=Mlp(64)), BlockCost(4 * 64 * 32, MLP, 4 * 32)),
    "torch's": (
        lambda: block_of(self_attn=nn.MultiheadAttention(64, 4), mlp=Mlp(64)),
        BlockCost(4 * 64 * 64, MLP, 4 * 64),
    ),
    "two": (
        lambda: block_of(attns=nn.ModuleList([Mixer(64, 4), Mixer(64, 2)]), mlp=Mlp(64)),
        BlockCost(4 * 64 * (32 + 16), MLP, 4 * (32 + 16)),
    ),
    "convolutions of one token": (
        lambda: block_of(attn=Mixer(64, 4), mlp=nn.Sequential(nn.Conv2d(64, 192, 1), nn.Conv2d(192, 64, 1))),
        BlockCost(4 * 64 * 32, MLP, 4 * 32),
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_the_cost_of_an_ordinary_block_is_read_off_its_parts(name):
    block, expected = BLOCKS[name]
    assert block_cost(block(), lambda block, x: x) == expected


def test_low_rank_adapters_add_their_weights():
    peft = pytest.importorskip("peft")
    model = build("ViT")
    before = registry.adapter_of(model.blocks[0]).cost(model.blocks[0])
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["qkv", "proj", "fc1"]))
    after = registry.adapter_of(wrapped.base_model.model.blocks[0]).cost(wrapped.base_model.model.blocks[0])
    assert after.pairs == before.pairs
    assert after.attention == before.attention + 2 * (64 + 192) + 2 * (64 + 64)
    assert after.mlp == before.mlp + 2 * (64 + 256)


class Own(nn.Module):
    """A block in which attention is a method and no module, its layers as modules or as mere parameters."""

    def __init__(self, modules):
        super().__init__()
        self.proj: nn.Module = nn.Linear(64, 64)
        self.enter = nn.Linear(64, 192) if modules else nn.Parameter(0.1 * torch.randn(192, 64))
        self.mlp: nn.Module = Mlp(64)
        self.proj = self.proj if modules else nn.Identity()

    def mix(self, x):
        qkv = nn.functional.linear(x, self.enter) if isinstance(self.enter, nn.Parameter) else self.enter(x)
        return self.proj(nn.functional.scaled_dot_product_attention(*qkv.chunk(3, -1)))

    def forward(self, x):
        return OwnHalves.mlp_half(self, OwnHalves.attention_half(self, x, None))


class OwnHalves(Adapter):
    projection = "patch_embed.proj"

    @staticmethod
    def attention_half(block, x, tokens):
        return x + block.mix(x)

    @staticmethod
    def mlp_half(block, x):
        return x + block.mlp(x)

    @staticmethod
    def takes_mask(block):
        return False


@pytest.fixture
def of_own_blocks(monkeypatch):
    monkeypatch.setattr(registry, "ADAPTERS", dict(registry.ADAPTERS))
    register(f"{Own.__module__}.Own.forward")(OwnHalves)

    def of(modules):
        model = build("ViT")
        model.blocks = nn.Sequential(*(Own(modules) for _ in range(3)))
        apply_algm(model, gbm_layers=[2], tau=0.5, proportional_attention=False)
        with torch.no_grad():
            model(photo())
        return model

    return of


def test_attention_without_a_module_is_what_the_mlp_half_does_not_run(of_own_blocks):
    model = of_own_blocks(modules=True)
    costs = vit_cost(*find_vit(model), model.algm.last_pass.grid).blocks
    assert set(costs) == {BlockCost(4 * 64 * 64, MLP, 4 * 64)}
    assert model.algm.gflops < model.algm.unpatched_gflops


class Bare(Own):
    """A block without a layer."""

    def __init__(self):
        super().__init__(modules=False)
        self.mlp = nn.Identity()


def first_tokens(model, images):
    return model.forward_features(images)[None, None, 0]


def test_blocks_without_layers_have_pictures_and_are_tuned(of_own_blocks, monkeypatch):
    """A pass takes half the unpatched model's time, whatever the machine does."""
    monkeypatch.setattr(Bench, "cost_of", lambda bench, index, found: bench.reference.costs[index] / 2)
    model = of_own_blocks(modules=False)
    remove_algm(model)
    model.blocks = nn.Sequential(Bare(), Bare())
    apply_algm(model, gbm_layers=[2], tau=0.5, proportional_attention=False)
    assert [*panels(model, photo(batch=1), first_tokens)][-1].startswith("difference: ")
    assert "Bare costs is not known: it has no linear layers" in repr(model.algm)
    assert tune(model, photo(), keep=0.1, cost="time", budget="60s").record.names == ("cosine",)


def test_attention_that_is_not_found_is_said_and_not_guessed(of_own_blocks, monkeypatch):
    """The card and the printed handle say it, and raise nothing."""
    model = of_own_blocks(modules=False)
    with pytest.raises(ValueError, match=r"Own costs is not known.*method cost\(block\)"):
        _ = model.algm.gflops
    assert "costs is not known" in repr(model.algm)
    assert "costs is not known" in model.algm._repr_html_()
    monkeypatch.setattr(OwnHalves, "cost", lambda block: BlockCost(3 * 64 * 64, MLP, 4 * 64))
    assert model.algm.gflops < model.algm.unpatched_gflops


def test_a_block_that_cannot_be_copied_is_said(of_own_blocks):
    model = of_own_blocks(modules=True)
    model.blocks[1].seen = 2 * torch.ones(1, requires_grad=True)
    assert "Own costs is not known: run by itself" in repr(model.algm)


class Scaled(nn.Sequential):
    """A stem whose forward takes more than an image."""

    def forward(self, x, scale):  # type: ignore[override]
        return super().forward(scale * x)


@pytest.mark.parametrize(("cls", "more"), [(Scaled, []), (nn.Sequential, [nn.Flatten()])], ids=["argument", "no grid"])
def test_a_stem_that_cannot_run_by_itself_is_said(cls, more):
    stem = cls(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 64, 4, 4), *more)
    with pytest.raises(ValueError, match=rf"{cls.__name__} costs is not known: run by itself.*cost='time'"):
        embedding_cost(nn.ModuleDict({"stem": stem}), stem, (4, 4))


def test_hooks_that_keep_activations_are_not_copied():
    """The cost of a stem is counted on a copy of it. Activations with a gradient cannot be copied."""
    model, kept = timm.create_model("vit_tiny_r_s16_p8_224", img_size=64, num_classes=0, depth=2), Kept()
    for module in (model.patch_embed.backbone, model.patch_embed.proj, *model.blocks):
        module.register_forward_hook(kept.keep)
    apply_algm(model, gbm_layers=[2])(torch.rand(1, 3, 64, 64))
    assert model.algm.gflops > 0
    assert len(kept.outputs) == 4  # the copy has no hooks, the model has its own


class Kept:
    """Keeps the outputs of modules."""

    def __init__(self):
        self.outputs = []

    def keep(self, module, given, output):
        self.outputs.append(output)
