"""Fixed counts leave Python: torch.export and ONNX, for any number of images, without a shape that a value decides."""

from __future__ import annotations

import io
import pickle
from functools import cache
from types import SimpleNamespace

import cases_segmenter
import models
import models_huggingface
import pytest
import torch
from models import photo
from test_batches import CLOSE, unlike
from test_contract import CASES, trace
from torch import nn
from torch.fx.experimental.symbolic_shapes import free_symbols

from algm_patch import apply_algm

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# Small: an export takes seconds. The second of two blocks has attention on what both merges left.
FIXED = {"clap_layer": 1, "gbm_layers": [1], "merge_to": 0.6}
BY_THRESHOLD = {"clap_layer": 1, "gbm_layers": [1], "tau": 0.5}
NAMES = (
    "timm ViT",
    "timm EVA-02",
    "timm DINOv3",
    "timm BEiT",
    "timm relative positions",
    "transformers DINOv2",
    "transformers DINOv3",
    "transformers BEiT, bias per layer",
    "Segmenter mask transformer",
)
TO_ONNX = ("timm ViT", "timm EVA-02", "transformers DINOv2", "timm BEiT")
CLOSE_IN_ONNX = {"atol": 1e-4, "rtol": 1e-4}
MODES = pytest.mark.parametrize("strict", [False, True], ids=["not strict", "strict"])
EVERY = pytest.mark.parametrize("name", NAMES)


class Call(nn.Module):
    """What a function makes of a model and images, as a module."""

    def __init__(self, model, call):
        super().__init__()
        self.model, self.call = model, call

    def forward(self, images):
        return self.call(self.model, images)


def build(name):
    """A model of two blocks, from images to final tokens, not yet patched."""
    library, _, family = name.partition(" ")
    if library == "timm":
        model = models.build(family, depth=2)
    elif library == "transformers":
        model = models_huggingface.build(family, num_hidden_layers=2)
    else:
        model = cases_segmenter.build("mask", depth=2)
    return Call(model.requires_grad_(False), CASES[name].tokens)


def five(like):
    """Five unlike images of this size."""
    return torch.cat([unlike(like), torch.randn(1, *like.shape[1:], generator=torch.Generator().manual_seed(2))])


def export(model, images, strict=False):
    """From two images, for any number of them."""
    return torch.export.export(model, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=strict)


def assert_equal_to_eager(exported, model, images, tolerance=CLOSE):
    for count in (1, 3, 5):
        torch.testing.assert_close(exported(images[:count]), model(images[:count]), **tolerance)


def session(program, path):
    """What onnxruntime computes from an ONNX program."""
    program.save(path)
    found = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = [entry.name for entry in found.get_inputs()]
    return lambda images: torch.from_numpy(found.run(None, {name: images.numpy()})[0])


def nodes(program):
    """The operations of an exported program, those of the graphs in it too."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            yield from (node for node in module.graph.nodes if node.op == "call_function")


def read_from_values(program):
    """The operations that make a number of what a tensor holds."""
    return {
        str(node.target)
        for node in nodes(program)
        if torch.Tag.data_dependent_output in getattr(node.target, "tags", ())
    }


def symbols(program):
    """What the shapes in an exported program depend on."""
    return set().union(*(free_symbols(node.meta["val"]) for node in nodes(program) if node.meta.get("val") is not None))


@cache
def exported(name, strict=False):
    """A patched model and its export; what the model was before, and what it said after."""
    torch.manual_seed(0)
    model, images = apply_algm(build(name), **FIXED), five(CASES[name].image())
    before = SimpleNamespace(
        parts=trace(model), state={key: value.clone() for key, value in model.state_dict().items()}
    )
    program = export(model, images, strict)
    return SimpleNamespace(model=model, images=images, program=program, before=before, described=str(model.algm))


# -- every kind of model


@MODES
@EVERY
def test_any_number_of_images(name, strict):
    found = exported(name, strict)
    assert_equal_to_eager(found.program.module(), found.model, found.images)
    assert set(found.model.algm.tokens_per_layer) == {found.model.algm.token_map.labels.shape[1] - 30 + 11}


@MODES
@EVERY
def test_shapes_depend_on_the_number_of_images_alone(name, strict):
    program = exported(name, strict).program
    assert len(symbols(program)) == 1
    assert not read_from_values(program)
    (output,) = [node.meta["val"] for node in program.graph.output_node().args[0]]
    images, *others = output.shape
    assert free_symbols(images) == symbols(program)
    assert all(isinstance(side, int) for side in others)


@MODES
@EVERY
def test_it_is_made_of_what_others_have(name, strict):
    """Operators of torch's own, and no scatter with a mean, which ONNX has not."""
    for node in nodes(exported(name, strict).program):
        assert "algm" not in str(node.target)
        assert "mean" not in [*node.args, *node.kwargs.values()]


@MODES
@EVERY
def test_the_model_is_what_it_was(name, strict):
    found = exported(name, strict)
    assert trace(found.model) == found.before.parts
    state = found.model.state_dict()
    assert list(state) == list(found.before.state)
    assert all(torch.equal(state[key], value) for key, value in found.before.state.items())


def test_saved_and_loaded():
    found, file = exported("timm ViT"), io.BytesIO()
    torch.export.save(found.program, file)
    file.seek(0)
    assert_equal_to_eager(torch.export.load(file).module(), found.model, found.images)


@pytest.mark.parametrize("name", TO_ONNX)
def test_onnx(name, tmp_path):
    found = exported(name)
    program = torch.onnx.export(found.program, dynamo=True, verbose=False)
    assert_equal_to_eager(session(program, tmp_path / "model.onnx"), found.model, found.images, CLOSE_IN_ONNX)
    kinds = {node.op_type for node in program.model.graph.all_nodes()}
    assert not {"NonZero", "Compress", "Unique", "If", "Loop"} & kinds
    (output,) = program.model.graph.outputs
    assert [isinstance(side, int) for side in output.shape] == [False, True, True]


# -- an export is no forward pass


@MODES
@EVERY
def test_the_handle_knows_no_export(name, strict):
    assert "no forward pass yet" in exported(name, strict).described


def test_nor_one_to_onnx():
    model = apply_algm(build("timm ViT"), **FIXED)
    torch.onnx.export(model, (photo(),), dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)
    with pytest.raises(RuntimeError, match="knows no forward pass"):
        _ = model.algm.token_map


@MODES
def test_the_last_forward_pass_stays_known(strict):
    model, images = apply_algm(build("timm ViT"), **FIXED), five(photo())
    expected, known, described = model(images), model.algm.token_map, str(model.algm)
    export(model, images, strict)
    assert model.algm.token_map is known
    assert type(known.labels) is type(known.sizes) is torch.Tensor
    assert str(model.algm) == described
    assert torch.equal(model(images), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model.model)).forward_features(images), expected)


# -- whatever the settings


@pytest.mark.parametrize(
    "settings",
    [
        {"merge_to": [21, 0.5]},
        {"proportional_attention": False},
        {"compare": "key"},
        {"place": "after_mlp"},
        {"window": (3, 2)},
        {"clap_layer": None, "gbm_layers": [1, 2]},
    ],
    ids=str,
)
def test_with_other_settings(settings):
    model, images = build("timm ViT"), five(photo())
    whole = model(images)
    apply_algm(model, **{**FIXED, **settings})
    assert not torch.equal(model(images), whole)
    assert_equal_to_eager(export(model, images).module(), model, images)


@pytest.mark.parametrize("grid", [(5, 8), (9, 4), (2, 2)], ids=str)
def test_any_grid(grid):
    images = five(photo(grid=grid))
    model = apply_algm(models.build("ViT", grid, depth=2).requires_grad_(False), **FIXED)
    assert_equal_to_eager(export(model, images).module(), model, images)


def test_half_precision():
    model, images = apply_algm(build("timm ViT").bfloat16(), **FIXED), five(photo()).bfloat16()
    assert_equal_to_eager(export(model, images).module(), model, images)


def test_blocks_in_between():
    model = Call(models.build("ViT", depth=2).requires_grad_(False), both_layers)
    apply_algm(model, **FIXED)
    images = five(photo())
    found = export(model, images).module()
    for count in (1, 3, 5):
        for one, other in zip(found(images[:count]), model(images[:count]), strict=True):
            assert one.shape == (count, 64, *models.GRID)
            torch.testing.assert_close(one, other, **CLOSE)


def both_layers(model, images):
    return model.forward_intermediates(images, indices=[0, 1], intermediates_only=True)


@pytest.mark.parametrize("unmerge", ["before_head", "after_head"])
def test_decoders(unmerge):
    model, images = cases_segmenter.build("mask", depth=2).requires_grad_(False), five(photo())
    apply_algm(model, **FIXED, unmerge_at=unmerge)
    assert_equal_to_eager(export(model, images).module(), model, images)


@MODES
def test_what_draws_anew_is_refused(strict):
    model, images = apply_algm(build("timm ViT"), **FIXED, reduce="pick"), five(photo())
    with pytest.raises(Exception, match="reduce='pick' draws anew at every forward pass"):
        export(model, images, strict)


# -- thresholds: sizes that values decide


def numbers_of_tokens(model, images):
    counts = set()
    for image in images.split(1):
        model(image)
        counts.add(model.algm.token_map.sizes.shape[1])
    return counts


@pytest.mark.parametrize(("name", "strict"), [("timm ViT", True), ("transformers BEiT, bias per layer", False)])
def test_thresholds(name, strict):
    model, images = apply_algm(build(name), **BY_THRESHOLD), five(CASES[name].image())
    program = export(model, images, strict)
    assert_equal_to_eager(program.module(), model, images)
    assert len(numbers_of_tokens(model, images)) > 1
    assert read_from_values(program) == {"aten.item.default"}
    assert len(symbols(program)) > 1


def test_thresholds_and_one_image():
    model, images = apply_algm(build("timm ViT"), **BY_THRESHOLD), five(photo())
    found = torch.export.export(model, (images[:1],)).module()
    for image in images.split(1):
        torch.testing.assert_close(found(image), model(image), **CLOSE)
