"""Fixed counts leave Python: torch.export and ONNX, for any number of images, without a shape that a value decides."""

from __future__ import annotations

import io
import pickle

import pytest
import torch
from torch.fx.experimental.symbolic_shapes import free_symbols

from algm_patch import apply_algm
from tests.support.contract import trace
from tests.support.exporting import (
    EVERY,
    FIXED,
    MODES,
    assert_equal_to_eager,
    build,
    export,
    exported,
    five_images,
    nodes,
    read_from_values,
    symbols,
)
from tests.support.models import photo

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
TO_ONNX = ("timm ViT", "timm EVA-02", "transformers DINOv2", "timm BEiT")
CLOSE_IN_ONNX = {"atol": 1e-4, "rtol": 1e-4}


def session(program, path):
    """Return a function that runs an ONNX program in onnxruntime."""
    program.save(path)
    found = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = [entry.name for entry in found.get_inputs()]
    return lambda images: torch.from_numpy(found.run(None, {name: images.numpy()})[0])


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
    """Every operator is torch's own, and none is a scatter with a mean, which ONNX does not have."""
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
    model, images = apply_algm(build("timm ViT"), **FIXED), five_images(photo())
    expected, known, described = model(images), model.algm.token_map, str(model.algm)
    export(model, images, strict)
    assert model.algm.token_map is known
    assert type(known.labels) is type(known.sizes) is torch.Tensor
    assert str(model.algm) == described
    assert torch.equal(model(images), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model.model)).forward_features(images), expected)
