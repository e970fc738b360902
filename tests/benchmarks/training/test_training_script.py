"""What the training script learns and saves."""

from __future__ import annotations

import json

import dense_network
import pytest
import torch
import train_segmentation
from safetensors import safe_open
from safetensors.torch import load_file

from algm_patch import Settings
from tests.support.label_images import NAME, SIDE

run = train_segmentation.main


@pytest.mark.parametrize("head", ["linear", "mask"])
def test_it_learns_while_merging(command, tmp_path, head):
    history = run(command("--head", head, "--lr", 1e-3, epochs=10))
    assert [epoch["epoch"] for epoch in history] == [*range(1, 11)]
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert max(epoch["mIoU"] for epoch in history) > 0.6
    plain = run(command("--head", head, "--algm", "direct", "--tau", 2, "--gbm-layers", out="plain", epochs=1))
    assert history[-1]["GFLOPs"] < 0.9 * plain[0]["GFLOPs"]


def test_direct_trains_as_off_and_merges_when_measured(command, tmp_path):
    """The three ways differ in nothing else."""
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
    assert dense_network.describe(tmp_path / "out" / "best.safetensors").items() >= best.items()
    assert dense_network.describe(tmp_path / "out" / "last.safetensors").items() >= history[-1].items()


def test_a_run_begins_where_another_ended(command, tmp_path):
    run(command("--algm", "direct"))
    first = tmp_path / "out" / "last.safetensors"
    run(command("--start", first, "--lr", 1e-12, out="next", epochs=1))
    was, now = load_file(first), load_file(tmp_path / "next" / "last.safetensors")
    for name in was:
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(now[name], was[name], atol=1e-6, rtol=1e-5)


def test_what_does_not_count_is_not_learned(data, command):
    options = train_segmentation.parse(command())
    images = train_segmentation.open_splits(options, progress=False)
    crops = train_segmentation.Crops(images["train"], train_segmentation.make_model(options, 3))
    values = torch.cat([crops[i][1].flatten() for i in range(8)]).unique().tolist()
    assert set(values) <= {train_segmentation.IGNORED, 0, 1, 2}
    assert crops[0][0].shape == (3, SIDE, SIDE)
    logits = torch.randn(1, 3, 6, 6, requires_grad=True)
    loss = train_segmentation.mean_loss(logits, torch.full((1, SIDE, SIDE), train_segmentation.IGNORED))
    loss.backward()
    assert loss == 0
    assert logits.grad.abs().max() == 0


def test_metadata_says_what_it_is(command, tmp_path):
    run(command(epochs=1))
    with safe_open(tmp_path / "out" / "best.safetensors", "pt") as file:
        about = json.loads(file.metadata()[dense_network.KEY])
    assert about["model"] == f"timm:{NAME}"
    assert about["classes"] == 3
    assert about["size"] == [SIDE, SIDE]


def test_a_loss_that_is_no_number_ends_the_run(command, tmp_path):
    with pytest.raises(SystemExit, match="the loss is nan in epoch"):
        run(command("--lr", 1e12, "--optimizer", "sgd", epochs=3))
    assert not any((tmp_path / "out").glob("epoch-0003"))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(command, precision):
    (epoch,) = run(command("--precision", precision, epochs=1))
    assert 0 < epoch["loss"] < 2
