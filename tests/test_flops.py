"""The cost model: what torch counts where it counts all, and the same figure whatever runs the products."""

import copy
import pickle

import pytest
import timm
import torch
from models import build, photo, read_every_block
from test_contract import CASES
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from algm_patch import Adapter, adapters, apply_algm, register, remove_algm, tune
from algm_patch.adapters.cost import BlockCost, block_cost
from algm_patch.patching.find_vit import find_vit
from algm_patch.report.cost import embedding_cost
from algm_patch.viz import panels

SETTINGS = {
    "one layer": {"clap_layer": 1, "gbm_layers": [1], "tau": 0.5},
    "two layers": {"clap_layer": 2, "gbm_layers": [3, 4], "tau": 0.5},
    "merge last": {"clap_layer": 1, "gbm_layers": [3], "tau": 0.5, "place": "after_mlp"},
}


class EndOfBlocks(Exception):  # noqa: N818
    """The last block is through."""


def bmm(a, b, **kwargs):
    """As torch counts, but for outer products (older timm's rotary angles), in which nothing is summed."""
    batch, rows, inner = a
    return 0 if inner == 1 else 2 * batch * rows * inner * b[2]


def counted(case, model, image):
    """GFLOPs up to the end of the last block, by torch's counter, which counts all that attention multiplies there.

    With gradients, and so without kernels that fuse a whole attention module.
    """

    def end(*_):
        raise EndOfBlocks

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.bmm: bmm})
    hook = find_vit(model)[1].blocks[-1].register_forward_hook(end)
    with counter, sdpa_kernel(SDPBackend.MATH), pytest.raises(EndOfBlocks):
        case.tokens(model, image)
    hook.remove()
    return counter.get_total_flops() / 1e9


@pytest.mark.parametrize("name", CASES)
def test_the_cost_is_what_torch_counts(name):
    """Compare one image: torch counts a product to the last operation, and so does the model."""
    case = CASES[name]
    model, image = case.build(), case.image()[:1]
    unpatched = counted(case, model, image)
    for settings in SETTINGS.values():
        apply_algm(model, settings=settings)
        merging = counted(case, model, image)
        with torch.no_grad():
            case.tokens(model, image)
        assert model.algm.tokens_per_layer[-1] < model.algm.token_map.labels.shape[1]
        assert model.algm.unpatched_gflops == pytest.approx(unpatched, rel=1e-9)
        assert model.algm.gflops == pytest.approx(merging, rel=1e-9)


@pytest.mark.parametrize("metric", ["key", "query", "value"])
def test_matching_costs_what_the_width_of_the_metric_says(metric):
    case = CASES["timm ViT"]
    model, image = case.build(), case.image()[:1]
    apply_algm(model, gbm_layers=[1, 3], tau=0.5, compare=metric)
    merging = counted(case, model, image)
    with torch.no_grad():
        case.tokens(model, image)
    assert model.algm.gflops == pytest.approx(merging, rel=1e-9)


def compiled(model, **options):
    def run(images):
        torch._dynamo.reset()
        return torch.compile(model, backend="eager", **options)(images)

    return run


def without_fused_attention(model):
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model


WAYS = {
    "bfloat16": lambda model: lambda images: model.bfloat16()(images.bfloat16()),
    "float64": lambda model: lambda images: model.double()(images.double()),
    "autocast": lambda model: lambda images: torch.autocast("cpu", torch.bfloat16)(model)(images),
    "eager attention": lambda model: lambda images: without_fused_attention(model)(images),
    "inference mode": lambda model: lambda images: torch.inference_mode()(model)(images),
    "training": lambda model: lambda images: model.train()(images),
    "every block read": lambda model: lambda images: (read_every_block(model), model(images))[1],
    "compiled": lambda model: compiled(model),
    "compiled whole": lambda model: compiled(model, fullgraph=True),
    "once more": lambda model: model,
}


@pytest.mark.parametrize("way", WAYS)
def test_the_cost_is_the_same_whatever_runs_the_model(way):
    """With fixed counts, so that rounding merges no other number of tokens."""
    model, images = apply_algm(build("ViT"), gbm_layers=[3], merge_to=[0.7, 0.5]), photo(batch=2)
    with torch.no_grad():
        model(images)
        expected = model.algm.gflops, model.algm.unpatched_gflops
        other = pickle.loads(pickle.dumps(copy.deepcopy(model)))
        WAYS[way](other)(images)
    assert (other.algm.gflops, other.algm.unpatched_gflops) == expected
    assert expected[0] < expected[1]


@pytest.mark.parametrize("settings", [{}, {"unmerge_at": "before_head", "compare": "key"}, {"place": "after_mlp"}])
@pytest.mark.parametrize("way", ["packed", "no kernel takes them packed", "padded", "compiled"])
def test_the_cost_of_a_batch_is_the_mean_of_its_images(way, settings, monkeypatch):
    model = apply_algm(build("ViT"), gbm_layers=[2, 3], tau=0.8, batch="image", **settings)
    images = photo(batch=3)
    with torch.no_grad():
        alone = []
        for image in images:
            model(image[None])
            alone.append(model.algm.gflops)
        if way == "no kernel takes them packed":
            without_fused_attention(model)
        (model.train() if way == "padded" else compiled(model) if way == "compiled" else model)(images)
    assert len(set(alone)) > 1
    assert model.algm.gflops == pytest.approx(sum(alone) / 3, rel=1e-12)


def test_images_that_merge_the_same_number_cost_the_same():
    model, images = apply_algm(build("ViT"), gbm_layers=[3], tau=0.8, batch="min"), photo(batch=3)
    with torch.no_grad():
        model(images)
    costs = model.algm._operations(model.algm._past())
    assert len(costs) == 3
    assert len(set(costs)) == 1
    assert model.algm.gflops == costs[0] / 1e9


def test_merging_nothing_costs_what_the_unpatched_model_costs():
    model = apply_algm(build("ViT"), tau=2.0, gbm_layers=[])
    with torch.no_grad():
        model(photo())
    assert model.algm.gflops == model.algm.unpatched_gflops


def test_a_pass_that_ends_early_costs_the_blocks_that_ran():
    model = apply_algm(build("ViT"), tau=2.0, gbm_layers=[])
    with torch.no_grad():
        model(photo())
        whole = model.algm.gflops
        model.forward_intermediates(photo(), indices=[1], stop_early=True)
    assert 0.4 * whole < model.algm.gflops < 0.5 * whole  # two of five blocks, and the patch embedding


def test_before_a_forward_pass_there_is_no_cost():
    model = apply_algm(build("ViT"))
    for name in ("gflops", "unpatched_gflops"):
        with pytest.raises(RuntimeError, match="run the model on an image first"):
            getattr(model.algm, name)


# -- blocks of others


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
    before = adapters.timm.Block.cost(model.blocks[0])
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["qkv", "proj", "fc1"]))
    after = adapters.timm.Block.cost(wrapped.base_model.model.blocks[0])
    assert after.pairs == before.pairs
    assert after.attention == before.attention + 2 * (64 + 192) + 2 * (64 + 64)
    assert after.mlp == before.mlp + 2 * (64 + 256)


class Own(nn.Module):
    """A block in which attention is a method and no module, its layers as modules or as mere parameters."""

    def __init__(self, modules):
        super().__init__()
        self.proj = nn.Linear(64, 64)
        self.enter = nn.Linear(64, 192) if modules else nn.Parameter(0.1 * torch.randn(192, 64))
        self.mlp = Mlp(64)
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
    monkeypatch.setattr(adapters, "ADAPTERS", dict(adapters.ADAPTERS))
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
    costs = model.algm._cost(model.algm._past()).blocks
    assert set(costs) == {BlockCost(4 * 64 * 64, MLP, 4 * 64)}
    assert model.algm.gflops < model.algm.unpatched_gflops


class Bare(Own):
    """A block without a layer."""

    def __init__(self):
        super().__init__(modules=False)
        self.mlp = nn.Identity()


def test_blocks_without_layers_have_pictures_and_are_tuned(of_own_blocks):
    model = of_own_blocks(modules=False)
    remove_algm(model)
    model.blocks = nn.Sequential(Bare(), Bare())
    apply_algm(model, gbm_layers=[2], tau=0.5, proportional_attention=False)
    assert "difference" in panels(
        model, photo(batch=1), lambda model, images: model.forward_features(images)[None, None, 0]
    )
    assert "Bare costs is not known: it has no linear layers" in repr(model.algm)
    assert tune(model, photo(), keep=0.1, cost="time", budget="60s").record.judge == "cosine"


def test_attention_that_is_not_found_is_said_and_not_guessed(of_own_blocks, monkeypatch):
    """The card and print say so, too, and go on."""
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
    """Takes more than an image."""

    def forward(self, x, scale):
        return super().forward(scale * x)


@pytest.mark.parametrize(("cls", "more"), [(Scaled, []), (nn.Sequential, [nn.Flatten()])], ids=["argument", "no grid"])
def test_a_stem_that_cannot_run_by_itself_is_said(cls, more):
    stem = cls(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 64, 4, 4), *more)
    with pytest.raises(ValueError, match=rf"{cls.__name__} costs is not known: run by itself.*cost='time'"):
        embedding_cost(nn.ModuleDict({"stem": stem}), stem, (4, 4))


def test_hooks_that_keep_activations_are_not_copied():
    """A copy of a stem counts its operations; activations with a gradient cannot be copied."""
    model, kept = timm.create_model("vit_tiny_r_s16_p8_224", img_size=64, num_classes=0, depth=2), Kept()
    for module in (model.patch_embed.backbone, model.patch_embed.proj, *model.blocks):
        module.register_forward_hook(kept.keep)
    apply_algm(model, gbm_layers=[2])(torch.rand(1, 3, 64, 64))
    assert model.algm.gflops > 0
    assert len(kept.outputs) == 4  # the copy has no hooks, the model has its own


class Kept:
    """Keep what modules left."""

    def __init__(self):
        self.outputs = []

    def keep(self, module, given, output):
        self.outputs.append(output)
