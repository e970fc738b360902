"""Precision, memory layout and determinism of batches of unlike images."""

import pytest
import torch

from tests.support.batches import ATTENTION_KINDS, assert_as_alone, patched, prepare, unlike
from tests.support.models import build, photo
from tests.support.training import assert_same, gradients, without_chance


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", ATTENTION_KINDS)
def test_with_deterministic_algorithms(name):
    prepared = prepare(name)
    patched(without_chance(prepared.model), prepared.final_tokens, prepared.images, batch="image")
    found = [gradients(prepared.model, prepared.final_tokens(prepared.images).square().mean()) for _ in range(2)]
    assert prepared.model.algm.token_map.packing is not None
    assert_same(*found, atol=0, rtol=0)


LAYOUTS = {
    "channels last": lambda image: image.contiguous(memory_format=torch.channels_last),
    "every other pixel": lambda image: torch.stack([image, torch.zeros_like(image)], -1).flatten(3)[..., ::2],
    "turned": lambda image: image.mT.contiguous().mT,
    "images last": lambda image: image.movedim(0, -1).contiguous().movedim(-1, 0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_layouts_and_dtypes(layout, dtype):
    model = build("ViT").to(dtype)
    images = unlike(photo()).to(dtype)
    patched(model, model.forward_features, images, gbm_layers=[3], gbm_tau="tau")
    expected, token_map = model.forward_features(images), model.algm.token_map
    assert expected.dtype == dtype
    assert expected.isfinite().all()
    assert len((token_map.sizes > 0).sum(1).unique()) > 2
    other = LAYOUTS[layout](images)
    assert not other.is_contiguous()
    found = model.forward_features(other)
    assert torch.equal(model.algm.token_map.labels, token_map.labels)
    tolerance = 10 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
@pytest.mark.parametrize("name", ATTENTION_KINDS)
@torch.no_grad()
def test_half_precision(name, how):
    """Half precision does to the batch what it does to the image alone. GBM is off: CLAP's threshold lies in a gap."""
    prepared = prepare(name)
    dtype = torch.bfloat16 if how == "bfloat16" else torch.float32
    model, images = prepared.model.to(dtype), prepared.images.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        patched(model, prepared.final_tokens, images, gbm_layers=[])
        counts = assert_as_alone(model.algm, prepared.final_tokens, images, {"atol": 0.1, "rtol": 0.1})
    assert len(set(counts)) > 1
