"""torch.compile: one graph for images of any content, the outputs and maps of eager."""

import pytest
import torch
from torch._dynamo.utils import counters

from algm_patch import apply_algm
from tests.support.compiling import (
    FAMILIES,
    IN_ONE_GRAPH,
    SETTINGS,
    SIDE,
    WHOLE,
    assert_same_run,
    counted,
    images,
    tokens,
)


@pytest.fixture(autouse=True)
def _fresh():
    torch.manual_seed(0)
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture(params=FAMILIES)
def model(request):
    return FAMILIES[request.param]().eval()


@torch.no_grad()
@pytest.mark.parametrize("asked", [pytest.param({}, marks=IN_ONE_GRAPH), WHOLE], ids=["default", "whole"])
def test_one_graph_for_images_of_any_content(model, asked):
    apply_algm(model, **SETTINGS)
    counter, options = counted(**asked)
    compiled = torch.compile(model, **options)
    lengths = set()
    for seed in range(50):
        assert_same_run(model, compiled, images(seed))
        lengths.add(model.algm.tokens_per_layer[-1])
    assert len(lengths) > 10
    assert counter.frame_count <= 2
    assert not counters["graph_break"]


@torch.no_grad()
@pytest.mark.parametrize("batch", ["image", "min"])
def test_batches_of_unlike_images(model, batch):
    apply_algm(model, **SETTINGS, batch=batch, size_aware=False)
    counter, options = counted(**WHOLE)
    compiled = torch.compile(model, **options)
    merged = [assert_same_run(model, compiled, images(seed, 3), atol=1e-5, rtol=1e-5) for seed in range(5)]
    assert any(merged)
    assert (model.algm.token_map.sizes == 0).any() == (batch == "image")
    assert counter.frame_count <= 2
    vit = model.algm.runtime.vit
    targets = " ".join(str(node.target) for graph in counter.graphs for node in graph.graph.nodes)
    assert ("packed_attention" in targets) == (batch == "image" and vit.adapters[0].packs(vit.blocks[0]))


@IN_ONE_GRAPH
def test_a_compiler_knows_what_a_block_takes(prepared):
    """Compare answers that go by the name of a function, which compilers read as another name if they look into it."""
    vit = apply_algm(prepared.model, **SETTINGS).algm.runtime.vit

    def answers():
        pairs = zip(vit.adapters, vit.blocks, strict=True)
        return [(adapter.packs(block), adapter.takes_mask(block)) for adapter, block in pairs]

    compiled = torch.compile(lambda x: (x + 1, answers()), backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1))[1] == answers()


@torch.no_grad()
@pytest.mark.parametrize("tau", [-1.0, 1.0])
def test_everything_or_nothing_merges_in_the_same_graph(tau):
    model = apply_algm(FAMILIES["timm ViT"]().eval(), clap_layer=1, gbm_layers=[3], tau=tau, gbm_tau=tau)
    compiled = torch.compile(model, backend="eager", **WHOLE)
    assert assert_same_run(model, compiled, torch.randn(1, 3, SIDE, SIDE)) == (tau < 0)


@torch.no_grad()
def test_inductor():
    model = apply_algm(FAMILIES["timm ViT"]().eval(), **SETTINGS)
    counter, options = counted("inductor", **WHOLE)
    compiled = torch.compile(model, **options)
    for seed in range(8):
        torch.testing.assert_close(tokens(compiled, images(seed)), tokens(model, images(seed)), atol=1e-4, rtol=1e-4)
    assert counter.frame_count <= 2


@IN_ONE_GRAPH
@torch.no_grad()
@pytest.mark.parametrize("options", [{}, WHOLE, {"dynamic": False}], ids=["", "whole", "static"])
def test_fixed_counts_are_one_graph_without_symbols_of_content(model, options):
    apply_algm(model, clap_layer=1, gbm_layers=[3], merge_to=0.6)
    counter, options = counted(**options)
    compiled = torch.compile(model, **options)
    for seed in range(3):
        assert assert_same_run(model, compiled, images(seed, 2), atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1
    unbacked = [
        node for graph in counter.graphs for node in graph.graph.nodes if node.meta.get("unbacked_bindings") is not None
    ]
    assert unbacked == []


@IN_ONE_GRAPH
@torch.no_grad()
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_by_default_a_batch_of_unlike_images_is_one_graph(model, backend):
    apply_algm(model, **SETTINGS)
    counter, options = counted(backend)
    compiled = torch.compile(model, **options)
    for seed in range(4):
        found = tokens(compiled, images(seed, 3))
        torch.testing.assert_close(found, tokens(model, images(seed, 3)), atol=1e-4, rtol=1e-4)
    assert counter.frame_count == 1
    assert not counters["graph_break"]


def break_in_mlp(block):
    own_forward = block.mlp.forward

    def breaking(*args, **kwargs):
        torch._dynamo.graph_break()
        return own_forward(*args, **kwargs)

    block.mlp.forward = breaking


def break_in_hook(block):
    block.register_forward_hook(lambda *_: torch._dynamo.graph_break())


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("broken", [break_in_hook, break_in_mlp])
def test_behind_a_broken_graph_the_halves_are_compiled(broken, layer, batch):
    """For images of any number of tokens: few graphs more than for the first, and none after the fourth."""
    model = apply_algm(FAMILIES["timm ViT"]().eval(), **SETTINGS)
    broken(model.blocks[layer])
    counter, options = counted()
    compiled = torch.compile(model, **options)
    graphs = []
    for seed in range(12):
        assert_same_run(model, compiled, images(seed, batch), atol=1e-5, rtol=1e-5)
        graphs.append(counter.frame_count)
        assert "compiled in halves" in repr(model.algm)
    assert graphs[3] == graphs[-1] <= graphs[0] + (3 if broken is break_in_mlp else 0)
    model(images(0))
    assert "compiled" not in repr(model.algm)


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        {"compare": "key"},
        {"place": "after_mlp"},
        {"window": (3, 2)},
        {"gbm_tau": "tau"},
        {"proportional_attention": False},
        {"clap_layer": None, "gbm_tau": 0.9},
    ],
    ids=str,
)
def test_other_settings_compile_whole(settings):
    model = apply_algm(FAMILIES["timm ViT"]().eval(), **{**SETTINGS, **settings})
    compiled = torch.compile(model, backend="eager", **WHOLE)
    for batch in (1, 3):
        assert assert_same_run(model, compiled, images(3, batch), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_members_picked_at_random_are_refused():
    compiled = torch.compile(
        apply_algm(FAMILIES["timm ViT"]().eval(), **SETTINGS, reduce="pick"), backend="eager", **WHOLE
    )
    with pytest.raises(Exception, match="reduce='pick' draws anew"):
        compiled(images(0))
