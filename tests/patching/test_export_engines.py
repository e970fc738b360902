"""ONNX files without what engines are known to lack; onnxruntime and OpenVINO compute from them what torch does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from algm_patch import apply_algm
from algm_patch.core.plan import plan_clap, plan_gbm
from tests.support import cases_segmenter
from tests.support.batches import unlike
from tests.support.cases import CASES
from tests.support.engines import not_taken
from tests.support.exporting import BY_THRESHOLD, FIXED, build, five_images
from tests.support.models import photo

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")
pytest.importorskip("onnxscript")
CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}
pytestmark = pytest.mark.slow  # an export takes seconds, and tests/patching/test_export.py has some for every run
ANY_NUMBER = ({0: torch.export.Dim("batch")},)


def written(model, images, path, shapes=ANY_NUMBER):
    """Return the path of an ONNX file of a model, checked, which has nothing that an engine lacks."""
    program = torch.onnx.export(model, (images,), dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert program is not None
    assert not_taken(program) == []
    program.save(path)
    onnx.checker.check_model(path, full_check=True)
    return path


def in_onnxruntime(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


def in_openvino(source, images):
    """Return the output of a file, or of what ``openvino.convert_model`` takes, on the CPU, in float32."""
    compiled = openvino.compile_model(openvino.convert_model(source), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(compiled(images.numpy())[0].copy())


def assert_computed(path, model, images):
    """Assert that both engines compute from a file what the model does."""
    for engine in (in_onnxruntime, in_openvino):
        torch.testing.assert_close(engine(path, images), model(images), **CLOSE)


FAMILIES = ("timm ViT", "timm DINOv2, 4 registers", "timm EVA-02", "transformers ViT", "transformers DINOv2")
OTHER_SETTINGS: tuple[dict[str, Any], ...] = (
    {"gbm_layers": []},
    {"clap_layer": None},
    {"gbm_layers": [1, 2], "size_aware": False},
    {"gbm_layers": [1, 2], "size_aware": True, "restore": False},
    {"proportional_attention": False, "restore": True},
    {"compare": "key"},
    {"window": (3, 2)},
)


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name, tmp_path):
    model, images = apply_algm(build(name), **FIXED), five_images(CASES[name].image())
    path = written(model, images[:2], tmp_path / "model.onnx")
    for count in (1, 5):
        assert_computed(path, model, images[:count])


@pytest.mark.parametrize("settings", OTHER_SETTINGS, ids=str)
def test_settings(settings, tmp_path):
    model, images = apply_algm(build("timm ViT"), **{**FIXED, **settings}), unlike(photo())
    path = written(model, images[:2], tmp_path / "model.onnx")
    assert_computed(path, model, images)


def test_one_image(tmp_path):
    model, image = apply_algm(build("timm ViT"), **FIXED), photo()
    path = written(model, image, tmp_path / "model.onnx", shapes=None)
    assert_computed(path, model, image)


def test_a_decoder_on_merged_tokens(tmp_path):
    model, images = cases_segmenter.build("mask", depth=2).requires_grad_(False), unlike(photo())
    apply_algm(model, **FIXED, unmerge_at="after_head")
    path = written(model, images[:2], tmp_path / "model.onnx")
    assert_computed(path, model, images)


class Merge(nn.Module):
    """A merge of tokens of a grid, without a model."""

    def __init__(self, stage, side, count):
        super().__init__()
        self.stage, self.side, self.count = stage, side, count

    def forward(self, x):
        if self.stage == "CLAP":
            return plan_clap(x, (self.side, self.side), "auto", (2, 2), 0, self.count)(x)
        return plan_gbm(x, torch.ones(x.shape[:2]), "adaptive", 1, 0, self.count)(x)


@pytest.mark.parametrize(("stage", "side", "count"), [("CLAP", 128, 4000), ("GBM", 88, 3850)])
def test_more_than_an_engine_takes_at_once(stage, side, count, tmp_path):
    merge, x = Merge(stage, side, count), torch.randn(1, side * side, 4, generator=torch.Generator().manual_seed(0))
    path = written(merge, x, tmp_path / "model.onnx", shapes=None)
    assert_computed(path, merge, x)


def test_thresholds_and_one_image(tmp_path):
    model, images = apply_algm(build("timm ViT"), **BY_THRESHOLD), five_images(photo())
    program = torch.onnx.export(model, (images[:1],), dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "model.onnx")
    for image in images.split(1):
        torch.testing.assert_close(in_onnxruntime(tmp_path / "model.onnx", image), model(image), **CLOSE)


def test_openvino_takes_an_exported_program():
    model, images = apply_algm(build("timm ViT"), **FIXED), five_images(photo())
    program = torch.export.export(model, (images[:2],), dynamic_shapes=ANY_NUMBER)
    torch.testing.assert_close(in_openvino(program, images), model(images), **CLOSE)
