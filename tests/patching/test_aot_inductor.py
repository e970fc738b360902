"""Fixed counts run from a package of AOTInductor: compiled code, without the model."""

import pytest
import torch

from algm_patch import apply_algm
from tests.support.compiling import FAMILIES, images, tokens


@pytest.mark.slow
@torch.no_grad()
def test_a_package_gives_the_outputs_of_eager_for_any_number_of_images(tmp_path):
    torch.manual_seed(0)
    model = apply_algm(FAMILIES["timm ViT"]().eval(), clap_layer=1, gbm_layers=[3], merge_to=0.6)
    batch = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(model, (images(0, 2),), dynamic_shapes=batch)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    packaged = torch._inductor.aoti_load_package(path)
    for count in (1, 2, 5):
        x = images(3, count)
        torch.testing.assert_close(tokens(packaged, x), tokens(model, x), atol=1e-4, rtol=1e-4)
