"""The training script, on a data set that a tiny ViT learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

from algm_patch import Settings, apply_algm
from benchmarks.evaluation import checkpoints, segmentation
from benchmarks.evaluation.layouts import open_dataset
from benchmarks.evaluation.score import evaluate
from benchmarks.training import train
from benchmarks.training.images import IGNORED as CROSS_ENTROPY_IGNORES
from benchmarks.training.images import Crops, open_splits
from benchmarks.training.loop import mean_loss
from benchmarks.training.model import make_model
from benchmarks.training.options import parse
from tests.support.tiny_training import IGNORED, NAME, SIDE

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


run = train.main


# -- what is learned


@pytest.mark.parametrize("head", ["linear", "mask"])
def test_it_learns_while_merging(command, tmp_path, head):
    history = run(command("--head", head, "--lr", 1e-3, epochs=10))
    assert [epoch["epoch"] for epoch in history] == [*range(1, 11)]
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert max(epoch["mIoU"] for epoch in history) > 0.6
    plain = run(command("--head", head, "--algm", "direct", "--tau", 1.05, "--gbm-layers", out="plain", epochs=1))
    assert history[-1]["GFLOPs"] < 0.9 * plain[0]["GFLOPs"]


def test_direct_trains_as_off_and_merges_when_measured(command, tmp_path):
    """Nothing else tells the three ways apart."""
    settings = ("--tau", 0.9, "--gbm-layers", 3)
    off = [text for text in command("--algm", "off", out="off") if text not in ("--tau", "0.9", "--gbm-layers", "3")]
    histories = {
        "off": run(off),
        "direct": run(command("--algm", "direct", *settings, out="direct")),
        "train": run(command("--algm", "train", *settings, out="train")),
    }
    files = {way: tmp_path / way / "last.safetensors" for way in histories}
    tensors = {way: load_file(file) for way, file in files.items()}
    assert all(torch.equal(tensors["off"][name], tensors["direct"][name]) for name in tensors["off"])
    assert any(not torch.equal(tensors["off"][name], tensors["train"][name]) for name in tensors["off"])
    gflops = {way: history[-1]["GFLOPs"] for way, history in histories.items()}
    assert gflops["direct"] < gflops["off"] > gflops["train"]
    for way in ("direct", "train"):
        assert Settings.load(files[way]).gbm_layers == (3,)
    with pytest.raises(ValueError, match="holds no settings"):
        Settings.load(files["off"])


def test_only_the_last_blocks_train(command, tmp_path, weights):
    run(command("--blocks", 2, epochs=1))
    before, after = load_file(weights), load_file(tmp_path / "out" / "last.safetensors")
    changed = {
        name.split(".")[1]
        for name in before
        if name.startswith("blocks.") and not before[name].equal(after[f"trunk.{name}"])
    }
    assert changed == {"10", "11"}
    assert before["patch_embed.proj.weight"].equal(after["trunk.patch_embed.proj.weight"])


def test_the_best_epoch_is_kept(command, tmp_path):
    history = run(command("--lr", 3e-3, epochs=4))
    best = max(history, key=lambda epoch: epoch["mIoU"])
    assert checkpoints.describe(tmp_path / "out" / "best.safetensors").items() >= best.items()
    assert checkpoints.describe(tmp_path / "out" / "last.safetensors").items() >= history[-1].items()


def test_a_run_begins_where_another_ended(command, tmp_path):
    run(command("--algm", "direct"))
    first = tmp_path / "out" / "last.safetensors"
    run(command("--start", first, "--lr", 1e-12, out="next", epochs=1))
    was, now = load_file(first), load_file(tmp_path / "next" / "last.safetensors")
    for name in was:
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(now[name], was[name], atol=1e-6, rtol=1e-5)


def test_what_does_not_count_is_not_learned(data, command):
    options = parse(None, command())
    images = open_splits(options, progress=False)
    crops = Crops(images["train"], make_model(options, 3))
    values = torch.cat([crops[i][1].flatten() for i in range(8)]).unique().tolist()
    assert set(values) <= {CROSS_ENTROPY_IGNORES, 0, 1, 2}
    assert crops[0][0].shape == (3, SIDE, SIDE)
    logits = torch.randn(1, 3, 6, 6, requires_grad=True)
    loss = mean_loss(logits, torch.full((1, SIDE, SIDE), CROSS_ENTROPY_IGNORES))
    loss.backward()
    assert loss == 0
    assert logits.grad.abs().max() == 0


# -- checkpoints


def test_a_checkpoint_is_measured_as_in_training(command, data, tmp_path):
    """The functions and the other benchmark load it into an unpatched network, and patch that."""
    history = run(command("--head", "mask", "--algm", "train"))
    file = tmp_path / "out" / "last.safetensors"
    model = checkpoints.load(file)
    assert not hasattr(model, "algm")
    dataset = open_dataset("folder", data, "val", IGNORED, progress=False)
    apply_algm(model, settings=Settings.load(file))
    result = evaluate(model, dataset, progress=False)
    assert (result.miou, result.gflops) == (history[-1]["mIoU"], history[-1]["GFLOPs"])
    arguments = ["--layout", "folder", "--data", str(data), "--ignore", str(IGNORED), "--model", str(file)]
    found = segmentation.main(
        [*arguments, "--algm", str(file), "--records", str(tmp_path / "records"), "--device", "cpu"]
    )
    assert found["ALGM"].miou == history[-1]["mIoU"]
    assert found["unpatched"].gflops > found["ALGM"].gflops


def test_a_hugging_face_trunk(command, tmp_path, data):
    folder = tmp_path / "dinov2"
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=96, patch_size=16
    )
    transformers.Dinov2Backbone(config).save_pretrained(folder)
    transformers.BitImageProcessor(image_mean=[0.4] * 3, image_std=[0.2] * 3).save_pretrained(folder)
    arguments = command("--model", folder, "--algm", "train", epochs=1)
    at = arguments.index("--weights")
    history = run(arguments[:at] + arguments[at + 2 :])
    model = checkpoints.load(tmp_path / "out" / "last.safetensors")
    assert model.mean == (0.4, 0.4, 0.4)
    apply_algm(model, settings=Settings.load(tmp_path / "out" / "last.safetensors"))
    dataset = open_dataset("folder", data, "val", IGNORED, progress=False)
    assert evaluate(model, dataset, progress=False).miou == history[-1]["mIoU"]


def test_metadata_says_what_it_is(command, tmp_path):
    run(command(epochs=1))
    with safe_open(tmp_path / "out" / "best.safetensors", "pt") as file:
        about = json.loads(file.metadata()[checkpoints.KEY])
    assert about["model"] == f"timm:{NAME}"
    assert about["classes"] == 3
    assert about["size"] == [SIDE, SIDE]


def test_a_loss_that_is_no_number_ends_the_run(command, tmp_path):
    with pytest.raises(SystemExit, match="the loss is nan in epoch"):
        run(command("--lr", 1e12, "--optimizer", "sgd", epochs=3))
    assert not any((tmp_path / "out").glob("epoch-0003"))


# -- less than float32


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(command, precision):
    (epoch,) = run(command("--precision", precision, epochs=1))
    assert 0 < epoch["loss"] < 2
