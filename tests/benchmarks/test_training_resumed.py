"""A training run that is interrupted and resumed comes to the same end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from benchmarks.training import train
from tests.support.tiny_training import arguments

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


run = train.main


LONG = ("--head", "mask", "--accumulate", 2, "--batch", 2)


@pytest.fixture(scope="module")
def straight(data, weights, tmp_path_factory):
    """Return the history and the weights of a run that nothing interrupts."""
    out = tmp_path_factory.mktemp("straight") / "out"
    AcceleratorState._reset_state(reset_partial_state=True)
    return run(arguments(data, weights, out, *LONG, epochs=3)), load_file(out / "last.safetensors")


def failing(call, count, error):
    """Return a function like ``call`` that fails when it is called for the ``count``-th time."""
    calls = iter(range(1, 1000))

    def wrapped(*args, **kwargs):
        if next(calls) == count:
            raise error
        return call(*args, **kwargs)

    return wrapped


MOMENTS = {
    "in the first epoch": ("benchmarks.training.loop.mean_loss", 2),
    "in the second epoch": ("benchmarks.training.loop.mean_loss", 7),
    "while validating": ("benchmarks.training.train.evaluate", 2),
    "before weights are written": ("benchmarks.evaluation.checkpoints.save_file", 3),
    "before weights are in place": ("pathlib.Path.replace", 4),
    "before the state is written": ("accelerate.Accelerator.save_state", 2),
    "before the state is in place": ("pathlib.Path.replace", 5),
    "before the old state is gone": ("shutil.rmtree", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_interrupted_at_any_moment_it_comes_to_the_same_end(command, tmp_path, straight, moment, monkeypatch, capsys):
    where, count = MOMENTS[moment]
    given = command(*LONG, epochs=3)
    with monkeypatch.context() as patch:
        patch.setattr(where, failing(resolve_name(where), count, KeyboardInterrupt()))
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
    monkeypatch.setattr(train, "run_epoch", lambda *_: pytest.fail("trained"))
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
                "-m",
                "benchmarks.training.train",
                *command("--batch", 2, *more, out=out, epochs=3),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
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
