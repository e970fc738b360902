"""torch.compile: one graph for images of any content, the outputs and maps of eager, in either order with the patch."""

import copy

import pytest
import timm
import torch
from models import build, photo
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import scaled_dot_product_attention

from algm_patch import apply_algm, remove_algm
from algm_patch.core.packing import Packing
from algm_patch.patching import packed_attention as packed

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
def test_inductor():
    model = apply_algm(FAMILIES["timm ViT"]().eval(), **SETTINGS)
    counter, options = counted("inductor", **WHOLE)
    compiled = torch.compile(model, **options)
    for seed in range(8):
        torch.testing.assert_close(tokens(compiled, images(seed)), tokens(model, images(seed)), atol=1e-4, rtol=1e-4)
    assert counter.frame_count <= 2


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
@pytest.mark.parametrize("settings", [SETTINGS, {"gbm_layers": [3], "merge_to": 0.6}], ids=["thresholds", "counts"])
def test_blocks_compiled_by_themselves(settings):
    model, x = FAMILIES["timm ViT"]().eval(), images(3, 2)
    expected = tokens(apply_algm(copy.deepcopy(model), settings=settings), x)
    for block in apply_algm(model, settings=settings).blocks:
        block.compile(backend="eager")
    for _ in range(2):
        torch.testing.assert_close(tokens(model, x), expected)


@torch.no_grad()
@pytest.mark.parametrize("settings", [SETTINGS, {"gbm_layers": [3], "merge_to": 0.6}], ids=["thresholds", "counts"])
@pytest.mark.parametrize("in_place", [False, True])
def test_compile_first_then_patch_change_and_remove(in_place, settings):
    model, x = FAMILIES["timm ViT"]().eval(), images(7)
    plain = tokens(model, x)
    reference = copy.deepcopy(model)
    if in_place:
        model.compile(backend="eager", **WHOLE)
        compiled = model
    else:
        compiled = torch.compile(model, backend="eager", **WHOLE)
    assert torch.equal(tokens(compiled, x), plain)
    apply_algm(compiled, settings=settings)
    expected = tokens(apply_algm(reference, settings=settings), x)
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


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("proportional", [True, False])
def test_the_packed_operator_and_its_gradients(heads, proportional):
    """Against autograd's own through each image, also where two queries share a key."""
    packing = Packing.of(torch.tensor([3, 7, 5]))
    query, key, value = (torch.randn(1, h, 15, 6, dtype=torch.float64, requires_grad=True) for h in (4, heads, heads))
    bias = torch.rand(3, 1, 1, 7, dtype=torch.float64) if proportional else None
    found = packed.opaque(query, key, value, packing.counts, 7, bias, 0.3, heads == 2)
    expected = packed.of_each_image(query, key, value, packing, bias, 0.3, heads == 2)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, (query, key, value), gradient),
        torch.autograd.grad(expected, (query, key, value), gradient),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_one_call_for_images_of_any_lengths_is_attention_of_each(dtype, monkeypatch):
    """The kernel is CUDA's: here a stand-in with its interface, which has no bias."""
    packing = Packing.of(torch.tensor([3, 7, 5]))
    query, key, value = (torch.randn(1, 2, 15, 6, dtype=torch.float64) for _ in range(3))
    sizes = torch.rand(3, 1, 1, 7, dtype=torch.float64) * 5

    def kernel(query, key, value, starts, same, longest, also, *, scale):
        assert query.shape == key.shape == value.shape == (15, 2, 8)
        assert (starts.tolist(), same.dtype, longest, also) == ([0, 3, 10, 15], torch.int32, 7, 7)
        images = (x.double().transpose(0, 1)[None].split([3, 7, 5], 2) for x in (query, key, value))
        outputs = [scaled_dot_product_attention(*image, scale=scale) for image in zip(*images, strict=True)]
        return torch.cat(outputs, 2)[0].transpose(0, 1)

    monkeypatch.setattr(packed, "varlen_attn", kernel)
    half = [x.to(dtype) for x in (query, key, value)]
    expected = packed.of_each_image(*(x.double() for x in half), packing, sizes, None, False)
    found = packed.in_one_call(*half, packing, sizes, None)
    torch.testing.assert_close(found, expected, atol=1e-4 if dtype == torch.bfloat16 else 1e-10, rtol=0)


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
