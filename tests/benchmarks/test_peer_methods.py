"""The methods that ALGM is compared with, on whole models: the grid, the weakest setting, the cost, the errors."""

import argparse

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from benchmarks.common.gflops import METER, counting, gflops
from benchmarks.evaluation import methods
from benchmarks.evaluation.ailurus import ailurus
from benchmarks.evaluation.dense import dense_model
from benchmarks.evaluation.elvit import elvit
from benchmarks.evaluation.mpm import mpm
from benchmarks.evaluation.pitome import pitome
from benchmarks.evaluation.resolution import lower_resolution
from benchmarks.evaluation.tome import tome_share
from benchmarks.paper.tradeoff import POINTS
from benchmarks.paper.tradeoff_figure import STYLES
from benchmarks.paper.tradeoff_points import METHODS
from tests.support.models import GRID, build, photo

TOKENS = GRID[0] * GRID[1]
MERGERS = {
    "ToMe": lambda model: tome_share(model, 0.2),
    "PiToMe": lambda model: pitome(model, 0.2),
    "ELViT": lambda model: elvit(model, 2, 0.4),
    "AiluRus": lambda model: ailurus(model, 2, 0.4),
    "MPM": lambda model: mpm(model, (2, 4)),
}
every_merger = pytest.mark.parametrize("merger", MERGERS.values(), ids=MERGERS)


@torch.no_grad()
@every_merger
@pytest.mark.parametrize("family", ["ViT", "DINOv2, 4 registers", "SigLIP, average pooling"])
def test_merging_gives_back_the_full_grid_and_costs_less(merger, family):
    model, images = build(family), photo(family)
    expected, unpatched = model.forward_features(images), gflops(model, images)
    with merger(model):
        found = model.forward_features(images)
        assert gflops(model, images) < unpatched
    assert found.shape == expected.shape
    assert not torch.equal(found, expected)
    assert torch.cosine_similarity(found, expected, dim=-1).mean() > 0.9


@torch.no_grad()
@every_merger
def test_where_all_tokens_are_alike_merging_changes_nothing(merger):
    """Groups weigh as much as their members, so attention returns the same, and so does everything after it."""
    model, image = build("ViT"), torch.full((2, 3, GRID[0] * 16, GRID[1] * 16), 0.3)
    nn.init.zeros_(model.pos_embed)
    expected = model.forward_features(image)
    with merger(model):
        found = model.forward_features(image)
        assert getattr(model, METER).lengths[5][1] < 1 + TOKENS
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "nothing",
    [
        lambda model: tome_share(model, 0.0),
        lambda model: pitome(model, 0.0),
        lambda model: ailurus(model, 2, 1.0),
        lambda model: mpm(model, ()),
    ],
    ids=["ToMe", "PiToMe", "AiluRus", "MPM"],
)
def test_the_weakest_setting_is_the_model_bit_for_bit(nothing):
    model, images = build("DINOv2"), photo("DINOv2")
    expected, unpatched = model.forward_features(images), gflops(model, images)
    with nothing(model):
        assert torch.equal(model.forward_features(images), expected)
        assert gflops(model, images) == unpatched


@torch.no_grad()
@pytest.mark.parametrize(
    ("merger", "lengths"),
    [
        (lambda model: tome_share(model, 0.2), [(31, 25), (25, 21), (21, 17), (17, 14), (14, 12)]),
        (lambda model: pitome(model, 0.5), [(31, 16), (16, 9), (9, 5), (5, 3), (3, 2)]),
        (lambda model: ailurus(model, 3, 0.4), [(31, 31)] * 3 + [(13, 13)] * 2),
        (lambda model: elvit(model, 1, 0.25), [(31, 31)] + [(1 + 3 * 2, 1 + 3 * 2)] * 4),
    ],
    ids=["ToMe", "PiToMe", "AiluRus", "ELViT"],
)
def test_settings_say_how_many_tokens_are_left(merger, lengths):
    model = build("ViT")
    with merger(model):
        model.forward_features(photo())
        assert list(getattr(model, METER).lengths.values()) == lengths


@torch.no_grad()
def test_elvit_counts_the_products_of_clustering_and_rebuilding():
    model = build("ViT")
    with elvit(model, 2, 0.4):  # 4 x 3 clusters, 9 of them around each of 30 tokens, 64 numbers
        model.forward_features(photo())
        products = 30 * 9 * (2 * 5 + 1) + 30 * 12 + 30 * 12
        assert getattr(model, METER).matching == 2 * 64 * products


@torch.no_grad()
def test_a_lower_resolution_is_the_model_on_smaller_images():
    trunk = build("DINOv2", grid=(8, 12))
    model = dense_model("tiny", trunk, "linear", 3, (8 * 14, 12 * 14)).eval()
    image = (255 * torch.rand(3, 50, 70)).to(torch.uint8)
    whole = model.predict(image, (50, 70))
    with counting(model) as unpatched:
        model.predict(image, (50, 70))
    small = interpolate(model.preprocess(image), (6 * 14, 9 * 14), mode="bilinear", antialias=True)
    with counting(model) as expected:
        logits = interpolate(model(small), (8, 12), mode="bilinear")
    with lower_resolution(model, 0.75), counting(model) as found:
        inside = model.predict(image, (50, 70))
    assert torch.equal(inside, interpolate(logits, (50, 70), mode="bilinear")[0])
    assert found.operations == expected.operations < unpatched.operations
    with lower_resolution(model, 1.0):
        assert torch.equal(model.predict(image, (50, 70)), whole)
    assert torch.equal(model.predict(image, (50, 70)), whole)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


@torch.no_grad()
@pytest.mark.parametrize(
    "patch", [*MERGERS.values(), lambda model: lower_resolution(model, 0.75)], ids=[*MERGERS, "resolution"]
)
def test_half_precision_stays_half(patch):
    model = dense_model("tiny", build("DINOv2"), "linear", 3, (GRID[0] * 14, GRID[1] * 14)).eval().bfloat16()
    images = photo("DINOv2").bfloat16()
    expected = model(images)
    with patch(model):
        found = model(images)
    assert (found.dtype, found.shape) == (torch.bfloat16, expected.shape)
    assert found.isfinite().all()


def test_what_cannot_be_done_is_said():
    model = build("ViT")
    for wrong, message in [
        (lambda: tome_share(model, 0.6), "from 0 to 0.5; got 0.6"),
        (lambda: pitome(model, -0.1), "from 0 to 0.5; got -0.1"),
        (lambda: ailurus(model, 5, 0.5), "layers 1 to 4; got layer 5"),
        (lambda: elvit(model, 0, 0.5), "layers 1 to 4; got layer 0"),
        (lambda: elvit(model, 2, 1.5), "from 0 to 1; got 1.5"),
        (lambda: mpm(model, (3, 6)), r"layers 1 to 5; got \[3, 6\]"),
        (lambda: mpm(build("EVA-02"), (3,)), "MPM is measured on blocks with timm.layers.Attention, but block 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()
    with pytest.raises(ValueError, match="more than 0 and at most 1; got 2"), lower_resolution(model, 2):
        pass
    with pytest.raises(ValueError, match="takes images of one size only"), lower_resolution(model, 1):
        pass
    model = build("DINOv2")
    with pytest.raises(ValueError, match=r"returned \[2, 3\]"), lower_resolution(model, 1), torch.no_grad():
        model(photo("DINOv2"))


def test_every_method_has_options_and_a_curve():
    parser = argparse.ArgumentParser()
    methods.add_method_options(parser, {option: points.split() for option, points in POINTS.items()})
    points = methods.chosen_methods(parser.parse_args([]))
    assert list(dict.fromkeys(point.name for point in points)) == ["unpatched", *METHODS[:-1]]
    assert list(STYLES) == list(METHODS)
    asked = (
        "--mpm 3,6 1,2,3,4 --elvit 5:0.4 --ailurus 2:0.5 --tome-ratio 0.06 --resolution 0.75 --tome --pitome --pooling"
    )
    points = methods.chosen_methods(parser.parse_args([*asked.split(), "--published", "--tau"]))
    assert [(point.name, point.setting) for point in points[1:]] == [
        ("lower resolution", "×0.75"),
        ("ToMe, ratio", "6%"),
        ("ELViT", "5: 40%"),
        ("AiluRus", "2: 50%"),
        ("MPM", "layers 3, 6"),
        ("MPM", "layers 1 to 4"),
    ]
