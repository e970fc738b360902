"""Throughput reports what the methods do, on a tiny model and a folder of eight images."""

from contextlib import nullcontext

import pytest
import torch

from benchmarks.common.patching import patched
from benchmarks.common.timing import median_ratio
from benchmarks.cost import throughput
from benchmarks.evaluation import methods as ways
from benchmarks.evaluation.inputs import network_inputs
from benchmarks.evaluation.options import open_all
from tests.support.models import build, photo
from tests.support.tiny_command import GRID, tiny_command


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    return tiny_command(tmp_path_factory.mktemp("data"))


def words(options):
    return options.split()


def clap(tau):
    return ways.Method("CLAP", f"τ={tau}", lambda model: patched(model, gbm_layers=[], tau=tau))


def cost(model, images, method):
    """Return the GFLOPs that the handle tells of a forward pass."""
    with method.patch(model):
        model(images)
        return model.algm.gflops


@torch.inference_mode()
def test_costs_are_of_an_image_and_against_the_first_method():
    model, images = build("ViT", grid=GRID), photo(batch=4, grid=GRID)
    methods = [ways.unpatched(), *ways.pooling_methods([1])]
    unpatched, pooled = throughput.costs(model, images, methods, rounds=2)
    assert unpatched.faster == 1
    assert pooled.gflops == pytest.approx(cost(model, images[:1], methods[1]))
    assert pooled.gflops < unpatched.gflops
    assert 0 < pooled.memory < unpatched.memory
    assert unpatched.speed > 0


@torch.inference_mode()
def test_copies_and_different_images_merge_as_each_image():
    model, images = build("ViT", grid=GRID), photo(batch=3, grid=GRID)
    images[2] = torch.randn_like(images[2])
    methods = [ways.unpatched(), clap(0.9)]
    alone = [cost(model, image[None], methods[1]) for image in images]
    assert len(set(alone)) > 1
    for image, expected in zip(images, alone, strict=True):
        copies = throughput.costs(model, image.expand(3, -1, -1, -1), methods, rounds=1)[1]
        assert copies.gflops == pytest.approx(expected)
    assert throughput.costs(model, images, methods, rounds=1)[1].gflops == pytest.approx(sum(alone) / 3)


def test_speed_is_the_median_over_rounds_and_the_mean_over_batches():
    assert median_ratio([2.0, 2.0, 30.0], [1.0, 2.0, 1.0]) == 2
    one, other = throughput.Cost(4.0, 10.0, 1.5, 100.0), throughput.Cost(6.0, 20.0, 2.5, 70.0)
    assert throughput.average([[one, one], [other, one]]) == [throughput.Cost(5.0, 15.0, 2.0, 100.0), one]


def test_rounds_go_through_all_methods_and_leave_the_model_as_it_was():
    model, images = build("ViT", grid=GRID), photo(grid=GRID)
    ran = []

    def recorded(name):
        return lambda _: ran.append(name) or nullcontext()

    methods = [ways.Method(name, "", recorded(name)) for name in "abc"]
    with torch.inference_mode():
        spent = ways.time_in_turns(model, images, methods, rounds=4)
    assert [len(own) for own in spent] == [4, 4, 4]
    assert [sorted(ran[i : i + 3]) for i in range(0, 12, 3)] == [["a", "b", "c"]] * 4
    assert len({tuple(ran[i : i + 3]) for i in range(0, 12, 3)}) > 1


def test_throughput_from_the_command_line(command, capsys):
    results = throughput.main([*command, *words("--batch 3 --images 4 --rounds 1 --tome 2 --published --tau 0.9")])
    assert list(results) == ["4 batches of 3 copies of one image", "1 batches of 3 different images"]
    printed = capsys.readouterr().out
    assert "timm:test_vit, 96x128 pixels, float32" in printed
    for name in ("unpatched", "2×2 pooling layer 1", "ToMe r=2", "ALGM defaults τ=0.9", *results):
        assert name in printed
    assert "ALGM as published" not in printed
    assert "images/s" not in printed  # times of a CPU are compared, not told
    for costs in results.values():
        assert costs[0].faster == 1
        assert all(cost.gflops < costs[0].gflops for cost in costs[1:])


def test_a_sliding_window_is_measured_as_one_window(command):
    model, dataset = opened([*command, "--size", "96", "--window", "64"])
    assert network_inputs(model, dataset, 5).shape == (5, 3, 64, 64)


def test_evenly_spaced_images(command):
    model, dataset = opened(command)
    images = network_inputs(model, dataset, 4)
    expected = [model.preprocess(dataset[i].image) for i in (0, 2, 4, 6)]
    assert torch.equal(images, torch.cat(expected))


def opened(command):
    options = throughput.parse(command)
    return open_all(options, "cpu", progress=False)


def test_what_does_not_fit_is_said(command):
    with pytest.raises(SystemExit, match="has 8 images, 32 are to be measured"):
        throughput.main(command)
