"""Examples tell in one line what goes wrong, and from their first second on what they do."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import before_after
import commands
import export
import pytest
import quickstart
import timm

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("example", [quickstart, before_after], ids=lambda example: example.__name__)
@pytest.mark.parametrize("tau", ["nonsense", "90", "nan", "-3", ""])
def test_a_threshold_that_is_none_is_refused(example, tau, capsys):
    with pytest.raises(SystemExit) as left:
        example.main([f"--tau={tau}"])
    assert left.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"{Path(sys.argv[0]).name}: error: argument --tau: tau")


@pytest.mark.parametrize("option", ["--merge-to=60", "--merge-to=nonsense", "--merge-to=0.1", "--size=0", "--size=x"])
def test_an_option_of_the_export_is_refused(option, capsys):
    with pytest.raises(SystemExit) as left:
        export.main([option])
    assert left.value.code == 2
    assert f"error: argument {option.partition('=')[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize("port", ["x", "0", "65536", "-1"])
def test_a_port_that_is_none_is_refused(port, capsys):
    app = pytest.importorskip("app", exc_type=ImportError)
    with pytest.raises(SystemExit) as left:
        app.main([f"--port={port}"])
    assert left.value.code == 2
    assert f"argument --port: a whole number from 1 to 65535, not {port!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("tau", "0.9", 0.9), ("tau", "paper", "paper"), ("tau", "1", 1.0), ("merge_to", "1", 1.0)],
)
def test_an_option_is_read_as_its_setting(name, text, value):
    assert commands.setting(name)(text) == value


def test_a_whole_number_is_within_its_bounds():
    read = commands.whole_number(1, 65535)
    assert [read("1"), read("65535")] == [1, 65535]
    for text in ("0", "65536", "-1", "1.5", "", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"from 1 to 65535, not {text!r}"):
            read(text)


def test_more_is_not_called_less():
    assert commands.times(3, 2, "faster", "slower") == "1.50 x faster"
    assert commands.times(2, 3, "faster", "slower") == "1.50 x slower"
    assert commands.times(2, 2, "faster", "slower") == "1.00 x faster"


@pytest.mark.parametrize("error", [OSError, ImportError, ValueError, TypeError, RuntimeError])
def test_an_error_is_one_line(error):
    def fails():
        raise error("it is not there")

    with pytest.raises(SystemExit) as left:
        commands.run(fails)
    assert left.value.code == "error: it is not there"


@pytest.mark.parametrize("example", [quickstart, export], ids=lambda example: example.__name__)
def test_a_model_that_the_hub_does_not_give_is_named(example, monkeypatch, capsys, tmp_path):
    def offline(name, **_):
        raise FileNotFoundError("Please check your connection")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(OSError, match=r"vit_tiny_patch16_224: its weights are not on this machine, and the hub did"):
        example.main(["--model", "vit_tiny_patch16_224", "--out", str(tmp_path)])
    assert "fetching vit_tiny_patch16_224 from the hub" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["quickstart", "export"])
def test_the_first_line_comes_before_torch_is_imported(name, tmp_path):
    """With a torch that cannot be imported, it is there all the same."""
    (tmp_path / "torch.py").write_text("raise SystemExit('no torch')")
    run = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.stdout == "loading torch and timm ...\n"
    assert "no torch" in run.stderr
