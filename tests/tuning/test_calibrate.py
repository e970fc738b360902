"""The threshold of a data set."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from algm_patch import apply_algm, calibrate
from algm_patch.core.matching import window_similarity
from algm_patch.core.thresholds import auto_tau, paper_tau
from tests.support.models import build, photo

IMAGES = photo(batch=5, seed=7)


def windows(model, layer):
    """Return the similarities of windows of the unpatched model's tokens."""
    with torch.no_grad():
        x = model._pos_embed(model.patch_embed(IMAGES))
        for block in model.blocks[: layer - 1]:
            x = block(x)
        block = model.blocks[layer - 1]
        x = x + block.attn(block.norm1(x))
        return window_similarity(x[:, 1:], (6, 5), (2, 2)).flatten()[None]


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize(("tau", "rule"), [("auto", auto_tau), (0.4, auto_tau), (1.05, auto_tau), ("paper", paper_tau)])
def test_the_rule_over_all_windows_of_all_images(layer, tau, rule):
    model = build("ViT")
    expected = rule(windows(model, layer)).item()
    apply_algm(model, clap_layer=layer, gbm_layers=[4], tau=tau, batch="min")
    assert calibrate(model, IMAGES) == pytest.approx(expected, abs=1e-6)
    assert model.algm.tau == ("paper" if tau == "paper" else "auto")
    assert model.algm.gbm_layers == (4,)
    assert f"calibrated: {expected:.4f}" in repr(model.algm)
    with torch.no_grad():
        model(photo(seed=1))
    assert f"CLAP 30 -> {model.algm.tokens_per_layer[layer - 1] - 1}, tau {expected:.4f}" in repr(model.algm)
    model.algm.tau = 0.3
    with torch.no_grad():
        model(photo(seed=1))
    assert f"CLAP 30 -> {model.algm.tokens_per_layer[layer - 1] - 1}, tau 0.3000" in repr(model.algm)
    model.algm.tau = "paper" if tau == "paper" else "auto"
    assert "calibrated" in repr(model.algm)


@pytest.mark.parametrize(
    "images",
    [
        IMAGES,
        list(IMAGES),
        [IMAGES[:2], IMAGES[2], IMAGES[3:]],
        DataLoader(TensorDataset(IMAGES, torch.arange(5)), batch_size=2),
        [{"label": 3, "image": IMAGES}],
        iter([(IMAGES, "names")]),
    ],
    ids=["tensor", "list", "mixed", "DataLoader", "dict", "iterator"],
)
def test_images_come_in_any_container(images):
    model = apply_algm(build("ViT"))
    expected = calibrate(apply_algm(build("ViT")), IMAGES)
    assert calibrate(model, images) == pytest.approx(expected, abs=1e-6)


def test_images_of_many_sizes():
    model = apply_algm(build("DINOv2"))
    images = [photo("DINOv2", batch=1, grid=grid)[0] for grid in [(6, 5), (9, 4), (1, 1)]]
    assert -1 < calibrate(model, images) < 1


def test_the_model_is_left_as_it_was():
    model = build("ViT", proj_drop_rate=0.5).train()
    model.blocks[2].eval()
    modes = [module.training for module in model.modules()]
    apply_algm(model)
    first = calibrate(model, IMAGES)
    assert first == calibrate(model, IMAGES)  # no dropout while measuring
    assert [module.training for module in model.modules()] == modes
    assert all(not block._forward_hooks for block in model.blocks)
    assert "no forward pass yet" in repr(model.algm)


def test_through_a_whole_model_without_running_its_head():
    class Head(nn.Module):
        def forward(self, x):
            raise AssertionError("the head need not run")

    model = apply_algm(nn.Sequential(build("ViT"), Head()))
    assert -1 < calibrate(model, IMAGES) < 1


def test_a_threshold_holds_for_the_layer_and_window_it_was_measured_in():
    model = apply_algm(build("ViT"))
    value = calibrate(model, IMAGES)
    assert f"calibrated: {value:.4f}" in repr(model.algm)
    for name, other, own in [("clap_layer", 2, 1), ("window", (3, 2), (2, 2)), ("tau", "paper", "auto")]:
        setattr(model.algm, name, other)
        assert "calibrated" not in repr(model.algm)
        setattr(model.algm, name, own)
        assert f"calibrated: {value:.4f}" in repr(model.algm)


def test_through_a_wrapper_of_a_patched_model_in_other_precisions():
    model = apply_algm(build("ViT"))
    expected = calibrate(model, IMAGES)
    assert calibrate(nn.Sequential(model, nn.ReLU()), IMAGES.double()) == expected
    half = nn.Sequential(apply_algm(build("ViT").bfloat16()))
    assert calibrate(half, IMAGES) == pytest.approx(expected, abs=0.02)


def test_two_patched_models_are_not_one():
    pair = nn.Sequential(apply_algm(build("ViT")), apply_algm(build("ViT")))
    with pytest.raises(ValueError, match=r"Sequential holds 2 patched ViTs \('0', '1'\)"):
        calibrate(pair, IMAGES)


def test_applying_anew_forgets():
    model = apply_algm(build("ViT"))
    calibrate(model, IMAGES)
    assert "calibrated" not in repr(apply_algm(model).algm)


@pytest.mark.parametrize(
    ("model", "images", "error", "message"),
    [
        (lambda: build("ViT"), IMAGES, ValueError, "VisionTransformer is not patched. Call apply_algm"),
        (lambda: apply_algm(build("ViT"), clap_layer=None), IMAGES, ValueError, "clap_layer is None"),
        (lambda: apply_algm(build("ViT")), [], ValueError, "calibrate got no images"),
        (lambda: torch.rand(3), build("ViT"), TypeError, r"the model comes first: .*got tensor\("),
        (lambda: apply_algm(build("DINOv2")), torch.randn(3, 14, 70), ValueError, r"no \(2, 2\) window in 1 batches"),
        (lambda: apply_algm(build("ViT")), torch.full((2, 3, 96, 80), torch.nan), ValueError, "give tau nan"),
        (lambda: apply_algm(build("ViT")), ["a.png"], FileNotFoundError, "a.png"),
        (lambda: apply_algm(build("ViT")), [("a", 1)], TypeError, "got <class 'tuple'>"),
    ],
)
def test_errors(model, images, error, message):
    with pytest.raises(error, match=message):
        calibrate(model(), images)
