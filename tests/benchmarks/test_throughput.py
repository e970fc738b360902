"""Throughput and tradeoff report what the methods do, on a tiny model and a folder of eight images."""

import csv
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from algm_patch import Settings
from benchmarks.common.patching import patched
from benchmarks.common.timing import median_ratio
from benchmarks.cost import throughput
from benchmarks.evaluation import methods as ways
from benchmarks.evaluation.inputs import network_inputs
from benchmarks.evaluation.options import open_all
from benchmarks.paper import tradeoff, tradeoff_points
from benchmarks.paper.tradeoff_figure import STYLES, draw
from tests.support.models import build, photo

GRID = (6, 8)
CLASSES = 3


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Return options for a model with random weights and eight images, flat in places and noisy in others."""
    folder = tmp_path_factory.mktemp("data")
    torch.manual_seed(0)
    backbone = timm.create_model("test_vit", num_classes=0)
    save_file(backbone.state_dict(), folder / "backbone.safetensors")
    head = nn.Sequential(nn.BatchNorm2d(backbone.num_features), nn.Conv2d(backbone.num_features, CLASSES, 1))
    save_file(head.state_dict(), folder / "head.safetensors")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for number in range(8):
        pixels = (photo(batch=1, grid=GRID, seed=number)[0].clamp(-2, 2) * 60 + 128).byte()
        pixels[:, :32] = 40 * number % 255
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / "images" / f"{number}.png")
        labels = np.arange(pixels[0].numel()).reshape(pixels[0].shape) * CLASSES // pixels[0].numel()
        Image.fromarray(labels.astype(np.uint8)).save(folder / "labels" / f"{number}.png")
    options = f"--data {folder} --layout folder --model timm:test_vit --size 96 128 --device cpu"
    files = ["--weights", str(folder / "backbone.safetensors"), "--head", str(folder / "head.safetensors")]
    return [*words(options), *files]


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


@pytest.fixture(scope="module")
def traded(command, tmp_path_factory):
    """Return points, one of them of ToMe that merges nothing, and the path of the files they were written to."""
    out = tmp_path_factory.mktemp("out") / "new" / "curves"
    settings = tmp_path_factory.mktemp("settings") / "mild.json"
    Settings(clap_layer=2, gbm_layers=(3,), tau=0.9).save(settings)
    methods = f"--tome 0 3 --pooling 1 --published 0.88 --tau 0.5 2 --settings {settings}"
    points = tradeoff.main([*command, *words(f"{methods} --timed 1 --rounds 1 --out {out}")])
    return points, out


def test_tradeoff_has_a_point_for_each_setting(traded):
    points, _ = traded
    assert [(point.method, point.setting) for point in points] == [
        ("unpatched", ""),
        ("2×2 pooling", "layer 1"),
        ("ToMe", "r=0"),
        ("ToMe", "r=3"),
        ("ALGM as published", "τ=0.88"),
        ("ALGM defaults", "τ=0.5"),
        ("ALGM defaults", "τ=2.0"),
        ("ALGM tuned", "mild"),
    ]
    assert points[0].agreement == 100
    assert points[0].time == 1


def test_what_merges_nothing_scores_as_unpatched_and_what_merges_does_not(traded):
    unpatched, *others = traded[0]
    for point in others:
        same = (point.miou, point.agreement, point.gflops) == (unpatched.miou, 100, unpatched.gflops)
        assert same == (point.setting == "r=0"), point
        assert point.gflops < unpatched.gflops or same
    assert others[0].agreement < 100


def test_tradeoff_is_written_as_a_table_and_a_picture(traded):
    points, out = traded
    with out.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    for point, row in zip(points, rows, strict=True):
        assert (row["method"], row["setting"]) == (point.method, point.setting)
        for name in ("miou", "agreement", "gflops", "time"):
            assert float(row[name]) == pytest.approx(getattr(point, name), abs=1e-4)
    assert np.asarray(Image.open(out.with_suffix(".png")).convert("L")).std() > 10


def test_tuned_points_are_compared_with_each_curve_at_their_cost():
    def point(method, setting, miou, gflops, time):
        return tradeoff_points.Point(method, setting, miou, 99.0, gflops, time)

    points = [
        point("unpatched", "", 50.0, 60.0, 1.0),
        point("ToMe", "r=2", 46.0, 20.0, 0.5),
        point("ToMe", "r=1", 48.0, 40.0, 0.9),
    ]
    assert tradeoff_points.margins(points) == ""
    tuned = point("ALGM tuned", "mild", 49.0, 30.0, 0.4)
    assert tradeoff_points.margin(tuned, points[1:], "gflops") == pytest.approx(2)
    assert tradeoff_points.margin(tuned, points[1:], "time") is None
    _, header, row, _ = tradeoff_points.margins([*points, tuned]).splitlines()
    assert (header.split(), row.split()) == (["ToMe"], ["mild", "+2.0", "/", "none"])


def test_the_picture_holds_every_point_within_its_axes():
    points = [tradeoff_points.Point("unpatched", "", 50.0, 100.0, 60.0, 1.0)]
    for method in STYLES:
        points += [
            tradeoff_points.Point(method, str(loss), 50.0 - loss, 99.0 - loss, 40 - loss, 0.5) for loss in (-0.7, 3, 30)
        ]
    figure = draw(points, "title", "machine")
    figure.draw_without_rendering()
    for axes in figure.axes:
        curves: list[Any] = [line for line in axes.lines if line.get_marker() != "None"]
        assert len(curves) == len(STYLES)
        for line in curves:
            assert len(line.get_xdata()) == 3
            for (low, high), values in ((axes.get_xlim(), line.get_xdata()), (axes.get_ylim(), line.get_ydata())):
                assert all(low < value < high for value in values)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(legend) == len(STYLES) + 1
    assert "unpatched: 50.0 % mIoU, 60.0 GFLOPs" in legend


def test_what_does_not_fit_is_said_before_anything_is_evaluated(command, monkeypatch, tmp_path):
    other = tmp_path / "other.json"
    other.write_text("{}")
    monkeypatch.setattr(tradeoff, "evaluate", None)
    with pytest.raises(SystemExit, match="r=30 of the 49 tokens of block 1, but only 24 can propose"):
        tradeoff.main([*command, *words("--pooling --tome 30")])
    with pytest.raises(SystemExit, match="has 8 images, 32 are to be measured"):
        throughput.main(command)
    with pytest.raises(SystemExit, match=r"other\.json"):
        tradeoff.main([*command, "--settings", str(other)])
