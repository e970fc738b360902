"""The trade-off: a point for each setting, its table, its files and its picture, on a tiny model and eight images."""

import re
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from PIL import Image

from algm_patch import Settings
from benchmarks.evaluation.bootstrap import Estimate
from benchmarks.paper import tradeoff, tradeoff_points
from benchmarks.paper.tradeoff_figure import STYLES, draw
from tests.support.tiny_command import tiny_command

TEXTS = ("method", "setting")


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    return tiny_command(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def traded(command, tmp_path_factory):
    """Return points, one of them of ToMe that merges nothing, and the path of the files they were written to."""
    out = tmp_path_factory.mktemp("out") / "new" / "curves"
    settings = tmp_path_factory.mktemp("settings") / "mild.json"
    Settings(clap_layer=2, gbm_layers=(3,), tau=0.9).save(settings)
    ours = f"--published 0.88 --tau 0.5 2 --settings {settings}"
    peers = "--resolution --pooling 1 --tome 0 3 --tome-ratio 0.1 --pitome 0.1 --elvit 2:0.5 --ailurus 2:0.5 --mpm 2,4"
    points = tradeoff.main([*command, *f"{peers} {ours} --timed 1 --rounds 1 --out {out}".split()])
    return points, out


def test_tradeoff_has_a_point_for_each_setting(traded):
    points, _ = traded
    assert [(point.method, point.setting) for point in points] == [
        ("unpatched", ""),
        ("2×2 pooling", "layer 1"),
        ("ToMe", "r=0"),
        ("ToMe", "r=3"),
        ("ToMe, ratio", "10%"),
        ("PiToMe", "10%"),
        ("ELViT", "2: 50%"),
        ("AiluRus", "2: 50%"),
        ("MPM", "layers 2, 4"),
        ("ALGM as published", "τ=0.88"),
        ("ALGM defaults", "τ=0.5"),
        ("ALGM defaults", "τ=2.0"),
        ("ALGM tuned", "mild"),
    ]
    assert points[0].agreement == points[0].classes == Estimate(100, 100, 100)
    assert points[0].difference == Estimate(0, 0, 0)
    assert points[0].time == 1


def test_what_merges_nothing_scores_as_unpatched_and_what_merges_does_not(traded):
    unpatched, *others = traded[0]
    for point in others:
        figures = point.miou, point.agreement.value, point.classes.value, point.gflops
        same = figures == (unpatched.miou, 100, 100, unpatched.gflops)
        assert same == (point.setting == "r=0"), point
        assert point.gflops < unpatched.gflops or same
        assert point.miou - unpatched.miou == pytest.approx(point.difference.value)
        for one in (point.difference, point.agreement, point.classes):
            assert one.low < one.value < one.high or same
    assert others[0].agreement.value < 100


def test_tradeoff_is_written_as_a_table_and_a_picture(traded):
    points, out = traded
    found = tradeoff_points.read(out.with_suffix(".csv"))
    for point, row in zip(points, found, strict=True):
        assert asdict(row) == asdict(point) | {
            name: pytest.approx(value, abs=1e-4) for name, value in asdict(point).items() if name not in TEXTS
        }
    assert np.asarray(Image.open(out.with_suffix(".png")).convert("L")).std() > 10


def test_the_table_has_intervals_and_its_columns_stand_in_line(traded):
    lines = tradeoff_points.table(traded[0]).splitlines()
    assert len({len(line) for line in lines[:-1]}) == 1
    assert re.fullmatch(
        r"ToMe r=3 +[\d.]+ +[+-][\d.]+ +\([+-][\d.]+ to [+-][\d.]+\)( +[\d.]+ +\([\d. to]+\)){2}.*", lines[4]
    )


def test_a_file_of_other_columns_is_refused(tmp_path):
    (tmp_path / "old.csv").write_text("method,setting,miou,agreement,gflops,time\nunpatched,,50,100,60,1\n")
    with pytest.raises(ValueError, match=r"old\.csv has no column 'difference'.*benchmarks\.paper\.tradeoff"):
        tradeoff_points.read(tmp_path / "old.csv")


def example(method, setting, miou, gflops, time, spread=1.0):
    """Return a point that differs from an unpatched one of 50.0 mIoU."""
    values = (miou - 50.0, miou + 49.0, miou + 45.0)
    estimates = (Estimate(value, value - spread, value + spread / 2) for value in values)
    return tradeoff_points.Point(method, setting, miou, gflops, time, *estimates)


def test_tuned_points_are_compared_with_each_curve_at_their_cost():
    points = [
        example("unpatched", "", 50.0, 60.0, 1.0),
        example("ToMe", "r=2", 46.0, 20.0, 0.5),
        example("ToMe", "r=1", 48.0, 40.0, 0.9),
    ]
    assert tradeoff_points.margins(points) == ""
    tuned = example("ALGM tuned", "mild", 49.0, 30.0, 0.4)
    assert tradeoff_points.margin(tuned, points[1:], "gflops", "classes") == pytest.approx(2)
    assert tradeoff_points.margin(tuned, points[1:], "time", "classes") is None
    _, header, row, _, _, other, _ = tradeoff_points.margins([*points, tuned]).splitlines()
    assert (header.split(), row.split(maxsplit=1)) == (["ToMe"], ["mild", "+2.0 / +2.0 / +2.0"])
    assert other.split() == ["mild", "none"]


def test_the_picture_holds_every_point_within_its_axes():
    points = [example("unpatched", "", 50.0, 60.0, 1.0, spread=0)]
    for method in STYLES:
        points += [example(method, str(loss), 50.0 - loss, 40 - loss, 0.5) for loss in (-0.7, 3, 30)]
    figure = draw(points, "title", "machine")
    figure.draw_without_rendering()
    assert len(figure.axes) == 4
    for axes in figure.axes:
        curves: list[Any] = [line for line in axes.lines if line.get_marker() != "None"]
        assert len(curves) == len(STYLES)
        for line in curves:
            assert len(line.get_xdata()) == 3
            for (low, high), values in ((axes.get_xlim(), line.get_xdata()), (axes.get_ylim(), line.get_ydata())):
                assert all(low < value < high for value in values)
        bars: list[float] = [
            end for bar in axes.collections for path in bar.get_paths() for end in np.asarray(path.vertices)[:, 1]
        ]
        assert len(bars) == 6 * len(STYLES)
        assert axes.get_ylim()[0] < min(bars) < max(bars) < axes.get_ylim()[1]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(legend) == len(STYLES) + 1
    assert any(text.startswith("ToMe (30 to -0.7)") for text in legend)
    assert "unpatched: 50.0 % mIoU, 60.0 GFLOPs" in legend


def test_what_does_not_fit_is_said_before_anything_is_evaluated(command, monkeypatch, tmp_path):
    other = tmp_path / "other.json"
    other.write_text("{}")
    monkeypatch.setattr(tradeoff, "evaluate", None)
    with pytest.raises(SystemExit, match="r=30 of the 49 tokens of block 1, but only 24 can propose"):
        tradeoff.main([*command, *["--resolution", "--mpm", "--pooling", "--tome", "30"]])
    with pytest.raises(SystemExit, match=r"other\.json"):
        tradeoff.main([*command, "--settings", str(other)])
