"""torch.compile: one graph for images of any content, the outputs and maps of eager, in either order with the patch."""

import copy

import pytest
import timm
import torch
from models import build, photo
from torch._dynamo.testing import CompileCounterWithBackend

from algm_patch import apply_algm, remove_algm

SETTINGS = {"clap_layer": 1, "gbm_layers": [3], "tau": 0.9}
WHOLE = {"fullgraph": True, "dynamic": True}
SIDE = 112


def timm_model(name):
    return timm.create_model(name, embed_dim=64, num_heads=4, depth=4, img_size=SIDE)


def transformers_model(name, **options):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, image_size=SIDE, patch_size=14, **options
    )
    return getattr(transformers, f"{name}Model")(config)


FAMILIES = {
    "timm ViT": lambda: timm_model("vit_small_patch14_dinov2"),
    "timm EVA-02": lambda: timm_model("eva02_small_patch14_224"),
    "timm BEiT": lambda: timm_model("beit_base_patch16_224"),
    "transformers DINOv2": lambda: transformers_model("Dinov2"),
    "transformers BEiT": lambda: transformers_model("Beit", intermediate_size=128, use_relative_position_bias=True),
}


@pytest.fixture(autouse=True)
def _fresh():
    torch.manual_seed(0)
    torch._dynamo.reset()


@pytest.fixture(params=FAMILIES)
def model(request):
    return FAMILIES[request.param]().eval()


def images(seed, batch=1):
    """Noise, of which more or less is blank."""
    x = torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    for i in range(batch):
        x[i, :, : (seed + 3 * i) % 8 * 14] = 0.5
    return x


def tokens(model, x):
    output = model(x)
    return output if isinstance(output, torch.Tensor) else output[0]


def counted(backend="eager", **options):
    counter = CompileCounterWithBackend(backend)
    return counter, {"backend": counter, **options}


def assert_same_run(model, compiled, x, **tolerance):
    """Output and maps; whether something merged."""
    expected, eager = tokens(model, x), model.algm.token_map
    found = tokens(compiled, x)
    torch.testing.assert_close(found, expected, **tolerance)
    assert torch.equal(model.algm.token_map.labels, eager.labels)
    assert torch.equal(model.algm.token_map.sizes, eager.sizes)
    return eager.sizes.shape[1] < eager.labels.shape[1]


@torch.no_grad()
def test_one_graph_for_images_of_any_content(model):
    apply_algm(model, **SETTINGS)
    counter, options = counted(**WHOLE)
    compiled = torch.compile(model, **options)
    lengths = set()
    for seed in range(50):
        assert_same_run(model, compiled, images(seed))
        lengths.add(model.algm.tokens_per_layer[-1])
    assert len(lengths) > 10
    assert counter.frame_count <= 2


@torch.no_grad()
@pytest.mark.parametrize("batch", ["image", "min"])
def test_batches_of_unlike_images(model, batch):
    apply_algm(model, **SETTINGS, batch=batch)
    counter, options = counted(**WHOLE)
    compiled = torch.compile(model, **options)
    merged = [assert_same_run(model, compiled, images(seed, 3), atol=1e-5, rtol=1e-5) for seed in range(5)]
    assert any(merged)
    assert (model.algm.token_map.sizes == 0).any() == (batch == "image")
    assert counter.frame_count <= 2


@torch.no_grad()
@pytest.mark.parametrize("tau", [-1.0, 1.0])
def test_everything_or_nothing_merges_in_the_same_graph(tau):
    model = apply_algm(FAMILIES["timm ViT"]().eval(), clap_layer=1, gbm_layers=[3], tau=tau, gbm_tau=tau)
    compiled = torch.compile(model, backend="eager", **WHOLE)
    assert assert_same_run(model, compiled, torch.randn(1, 3, SIDE, SIDE)) == (tau < 0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm ViT", "transformers DINOv2"])
def test_inductor(name):
    model = apply_algm(FAMILIES[name]().eval(), **SETTINGS)
    counter, options = counted("inductor", **WHOLE)
    compiled = torch.compile(model, **options)
    for seed in range(8):
        torch.testing.assert_close(tokens(compiled, images(seed)), tokens(model, images(seed)), atol=1e-4, rtol=1e-4)
    assert counter.frame_count <= 2


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, WHOLE, {"dynamic": False}], ids=["", "whole", "static"])
def test_fixed_counts_are_one_graph_without_symbols_of_content(model, options):
    apply_algm(model, clap_layer=1, gbm_layers=[3], tokens=0.6)
    counter, options = counted(**options)
    compiled = torch.compile(model, **options)
    for seed in range(3):
        assert assert_same_run(model, compiled, images(seed, 2), atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1
    unbacked = [
        node for graph in counter.graphs for node in graph.graph.nodes if node.meta.get("unbacked_bindings") is not None
    ]
    assert unbacked == []


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
def test_without_a_whole_graph_the_halves_are_compiled(model, batch):
    apply_algm(model, **SETTINGS)
    counter, options = counted()
    compiled = torch.compile(model, **options)
    merged = [assert_same_run(model, compiled, images(seed, batch)) for seed in range(4)]
    assert any(merged)
    assert counter.frame_count > 1


@torch.no_grad()
@pytest.mark.parametrize("settings", [SETTINGS, {"gbm_layers": [3], "tokens": 0.6}], ids=["thresholds", "counts"])
def test_blocks_compiled_by_themselves(settings):
    model, x = FAMILIES["timm ViT"]().eval(), images(3, 2)
    expected = tokens(apply_algm(copy.deepcopy(model), **settings), x)
    for block in apply_algm(model, **settings).blocks:
        block.compile(backend="eager")
    for _ in range(2):
        torch.testing.assert_close(tokens(model, x), expected)


@torch.no_grad()
@pytest.mark.parametrize("settings", [SETTINGS, {"gbm_layers": [3], "tokens": 0.6}], ids=["thresholds", "counts"])
@pytest.mark.parametrize("in_place", [False, True])
def test_compile_first_then_patch_change_and_remove(in_place, settings):
    model, x = FAMILIES["timm ViT"]().eval(), images(3)
    plain = tokens(model, x)
    reference = copy.deepcopy(model)
    if in_place:
        model.compile(backend="eager", **WHOLE)
        compiled = model
    else:
        compiled = torch.compile(model, backend="eager", **WHOLE)
    assert torch.equal(tokens(compiled, x), plain)
    apply_algm(compiled, **settings)
    expected = tokens(apply_algm(reference, **settings), x)
    torch.testing.assert_close(tokens(compiled, x), expected)
    assert not torch.allclose(expected, plain)
    model.algm.gbm_layers = reference.algm.gbm_layers = [2]
    torch.testing.assert_close(tokens(compiled, x), tokens(reference, x))
    remove_algm(compiled)
    assert torch.equal(tokens(compiled, x), plain)


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        {"metric": "key"},
        {"taps": "all"},
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


def test_gradients_of_a_batch_of_unlike_images():
    model = apply_algm(FAMILIES["timm ViT"]().eval(), **SETTINGS)
    compiled = torch.compile(model, backend="aot_eager", **WHOLE)
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        tokens(run, images(3, 3)).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) > 40
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_gradients_in_training():
    model = apply_algm(build("ViT").train(), clap_layer=1, gbm_layers=[3], tau=0.5)
    compiled = torch.compile(model, backend="aot_eager", **WHOLE)
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        run.forward_features(photo()).square().sum().backward()
        gradients.append(model.patch_embed.proj.weight.grad.clone())
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_after_a_compiled_run_the_model_is_copied_and_runs_as_ever():
    model, x = apply_algm(FAMILIES["timm ViT"]().eval(), **SETTINGS), images(3)
    expected = tokens(model, x)
    tokens(torch.compile(model, backend="eager", **WHOLE), x)
    assert "tokens after each layer" in repr(model.algm)
    assert torch.equal(tokens(copy.deepcopy(model), x), expected)
    assert torch.equal(tokens(model, x), expected)
