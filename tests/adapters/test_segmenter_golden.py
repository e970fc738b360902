"""Segmenter patched against the tensors that the authors' own code recorded."""

import ast

import pytest
import torch

from algm_patch import apply_algm
from tests.support.cases_segmenter import build
from tests.support.golden import golden_files, read_golden


@pytest.fixture(params=golden_files("segmenter_*"), ids=lambda path: path.stem)
def golden(request):
    tensors, recorded = read_golden(request.param)
    sizes = {name: int(recorded[name]) for name in ("image", "patch", "depth", "dim", "n_cls")}
    grid = (sizes["image"] // sizes["patch"],) * 2
    model = build(recorded["decoder"], grid, sizes["depth"], sizes["dim"], patch_size=sizes["patch"])
    model.load_state_dict({key[2:]: value for key, value in tensors.items() if key.startswith("w.")})
    (layer,) = ast.literal_eval(recorded["layers"])
    settings = {"clap_layer": layer, "gbm_layers": [], "tau": float(recorded["tau"]), "batch": "min"}
    return model, tensors, {**settings, "proportional_attention": False, "restore": False}


@torch.no_grad()
def test_golden_unpatched(golden):
    model, tensors, _ = golden
    torch.testing.assert_close(model(tensors["image"]), tensors["baseline_masks"], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_golden_encoder(golden):
    model, tensors, settings = golden
    apply_algm(model, **settings)
    found = model.encoder(tensors["image"], return_features=True)
    index = tensors["token_map"].long()[..., None].expand(-1, -1, found.shape[-1])
    torch.testing.assert_close(found, tensors["encoder_out"].gather(1, index), atol=1e-4, rtol=1e-4)
    assert model.algm.tokens_per_layer[-1] == tensors["encoder_out"].shape[1]


@torch.no_grad()
def test_golden_masks(golden):
    model, tensors, settings = golden
    apply_algm(model, **settings, unmerge_at="after_head")
    torch.testing.assert_close(model(tensors["image"]), tensors["masks"], atol=1e-4, rtol=1e-4)
