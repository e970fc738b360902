"""coremltools converts patched models with a fixed batch size. What Core ML computes only a Mac can tell."""

import pytest
import torch

from algm_patch import apply_algm
from tests.support.cases import CASES
from tests.support.exporting import FIXED, build, five_images

coremltools = pytest.importorskip("coremltools")
pytestmark = pytest.mark.slow


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["timm ViT", "timm EVA-02"])
def test_core_ml(name, batch):
    """Not DINOv2, whose unpatched models resize positions by what coremltools 9.0 lacks."""
    model, images = apply_algm(build(name), **FIXED), five_images(CASES[name].image())[:batch]
    program = torch.export.export(model, (images,)).run_decompositions({})
    converted = coremltools.convert(program, convert_to="mlprogram").get_spec()
    (output,) = converted.description.output
    assert list(output.type.multiArrayType.shape) == list(model(images).shape)
