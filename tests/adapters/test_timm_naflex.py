"""timm's NaFlexViT on batches of patches: one whole grid for all images, or refused."""

import pytest
import torch
from timm.data.naflex_transforms import patchify_image

from algm_patch import apply_algm
from tests.support.contract import SETTINGS
from tests.support.models import OTHERS, build, photo


def naflex_input(grids, length):
    """Return NaFlexViT's input for images of these grids, their patches padded to one length."""
    batch: dict[str, list[torch.Tensor]] = {"patches": [], "patch_coord": [], "patch_valid": []}
    for image in (photo(batch=1, grid=grid)[0] for grid in grids):
        patches, coordinates, valid = patchify_image(image, (16, 16))
        missing = length - len(patches)
        batch["patches"].append(torch.nn.functional.pad(patches, (0, 0, 0, missing)))
        batch["patch_coord"].append(torch.nn.functional.pad(coordinates, (0, 0, 0, missing)))
        batch["patch_valid"].append(torch.nn.functional.pad(valid, (0, missing)))
    return {name: torch.stack(values) for name, values in batch.items()}


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in OTHERS if name.startswith("NaFlex")])
def test_naflex_batches_of_one_grid(name):
    model = build(name)
    inputs = naflex_input([(6, 5), (6, 5)], 30)
    expected = model(inputs)
    apply_algm(model, clap_layer=1, gbm_layers=[3], tau=1.05, gbm_tau=1.05)
    assert torch.equal(model(inputs), expected)
    model.algm.tau, model.algm.gbm_tau = 0.5, "adaptive"
    found = model(inputs)
    assert found.shape == expected.shape
    assert model.algm.last_pass.grid == (6, 5)
    assert model.algm.tokens_per_layer[-1] < 30
    torch.testing.assert_close(found, model(photo(grid=(6, 5), batch=1).expand(2, -1, -1, -1)), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("grids", "length"), [([(6, 5), (5, 6)], 30), ([(6, 5), (4, 5)], 30), ([(6, 5)], 33)])
def test_naflex_batches_of_several_grids_or_with_padding_are_refused(grids, length):
    model = apply_algm(build("NaFlex"), **SETTINGS)
    with pytest.raises(ValueError, match="patches of this batch are not one whole grid"):
        model(naflex_input(grids, length))
