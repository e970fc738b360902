"""Interrupted and resumed, a run comes to the same end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train_segmentation
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from tests.support.label_images import arguments

ROOT = Path(__file__).parents[3]
run = train_segmentation.main
LONG = ("--head", "mask", "--accumulate", 2, "--batch", 2)


@pytest.fixture(scope="module")
def straight(data, weights, tmp_path_factory):
    """Return the history and the weights of a run that nothing interrupts."""
    out = tmp_path_factory.mktemp("straight") / "out"
    AcceleratorState._reset_state(reset_partial_state=True)
    return run(arguments(data, weights, out, *LONG, epochs=3)), load_file(out / "last.safetensors")


def failing(call, count, error):
    """Return a function that does what ``call`` does, and raises when it is called for the ``count``-th time."""
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


def test_a_run_is_resumed_with_its_own_options_only(command):
    run(command())
    with pytest.raises(SystemExit, match=r"the run to resume had \{'seed': '0'\}, this command has \{'seed': '1'\}"):
        run(command("--resume", "--seed", 1))


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
