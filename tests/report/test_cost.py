"""The cost model: what torch counts where it counts all, and the same figure whatever runs the products."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from algm_patch import apply_algm
from algm_patch.patching.find_vit import find_vit
from algm_patch.report.cost import vit_cost
from tests.support.cases import CASES
from tests.support.models import build, photo, read_every_block

SETTINGS: dict[str, Any] = {
    "one layer": {"clap_layer": 1, "gbm_layers": [1], "tau": 0.5},
    "two layers": {"clap_layer": 2, "gbm_layers": [3, 4], "tau": 0.5},
    "merge last": {"clap_layer": 1, "gbm_layers": [3], "tau": 0.5, "place": "after_mlp"},
}


class EndOfBlocks(Exception):  # noqa: N818
    """The last block is through."""


def bmm(a, b, **kwargs):
    """Count as torch does, except outer products (older timm's rotary angles), which sum nothing."""
    batch, rows, inner = a
    return 0 if inner == 1 else 2 * batch * rows * inner * b[2]


# What ViT-Adapter runs between the blocks, which is no part of the ViT.
BESIDE = {"SpatialPriorModule", "Injector", "Extractor"}


def counted(case, model, image):
    """Return the GFLOPs of the ViT up to the end of the last block, by torch's counter.

    With gradients no kernel fuses a whole attention module, so that the counter sees every product.
    """

    def end(*_):
        raise EndOfBlocks

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.bmm: bmm})
    hook = find_vit(model)[1].blocks[-1].register_forward_hook(end)
    with counter, sdpa_kernel(SDPBackend.MATH), pytest.raises(EndOfBlocks):
        case.tokens(model, image)
    hook.remove()
    by_module = counter.get_flop_counts()
    paths = [path for path, module in model.named_modules() if type(module).__name__ in BESIDE]
    beside = sum(sum(by_module.get(f"{type(model).__name__}.{path}", {}).values()) for path in paths)
    return (counter.get_total_flops() - beside) / 1e9


@pytest.mark.parametrize("name", CASES)
def test_the_cost_is_what_torch_counts(name):
    """Compare one image: torch counts a product to the last operation, and so does the model."""
    case = CASES[name]
    model, image = case.build(), case.image()[:1]
    unpatched = counted(case, model, image)
    for settings in SETTINGS.values():
        apply_algm(model, **settings)
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


WAYS: dict[str, Any] = {
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
    """Counts are fixed, so that rounding does not change the number of tokens."""
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
    last_pass = model.algm.last_pass
    costs = vit_cost(*find_vit(model), last_pass.grid).of_images(last_pass)
    assert len(costs) == 3
    assert len(set(costs)) == 1
    assert model.algm.gflops == costs[0] / 1e9


def test_merging_nothing_costs_what_the_unpatched_model_costs():
    model = apply_algm(build("ViT"), tau=1.05, gbm_layers=[])
    with torch.no_grad():
        model(photo())
    assert model.algm.gflops == model.algm.unpatched_gflops


def test_a_pass_that_ends_early_costs_the_blocks_that_ran():
    model = apply_algm(build("ViT"), tau=1.05, gbm_layers=[])
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
