"""The command algm-patch, as users call it."""

import argparse
import configparser
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage.data import astronaut

from algm_patch import Settings, __version__
from algm_patch.cli.main import main
from algm_patch.cli.options import parser

NAME = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model(NAME).state_dict(), path)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Change into a folder with images."""
    (tmp_path / "images").mkdir()
    for i in range(2):
        Image.fromarray(astronaut()[64 * i : 64 * i + 300]).save(tmp_path / "images" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(weights):
    return ["--model", NAME, "--weights", str(weights), "--size", "96", "96"]


def files(place):
    return {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()} - {
        "images/0.png",
        "images/1.png",
    }


def test_show(place, model, capsys):
    assert main(["show", "images/0.png", *model, "--tau", "0.5", "--out", "new/folder"]) == 0
    assert files(place) == {"new/folder/0.png"}
    assert Image.open("new/folder/0.png").width > 800
    printed = capsys.readouterr().out
    assert "CLAP 36 ->" in printed
    assert "tau 0.5" in printed


def test_tune_then_bench_with_what_was_found(place, model, capsys):
    assert main(["tune", "images", *model, "--keep", "0.5", "--budget", "60s"]) == 0
    assert files(place) == {"algm_out/settings.json", "algm_out/pareto.png"}
    settings = Settings.load("algm_out/settings.json")
    assert capsys.readouterr().out.endswith("\napply_algm(model, settings=Settings.load('algm_out/settings.json'))\n")
    assert settings.record.kept["cosine"] >= 0.5
    before = files(place)
    assert main(["bench", "images/0.png", *model, "--settings", "algm_out/settings.json", "--rounds", "2"]) == 0
    assert "GFLOPs of the ViT an image" in capsys.readouterr().out
    assert files(place) == before


def test_tune_takes_what_to_keep_before_the_folder(place, model):
    assert main(["tune", "--keep", "cosine=0.5", "images", *model, "--budget", "60s"]) == 0
    assert main(["tune", "--keep", "cosine=0.5", "--keep", "cosine=0.6", "images", *model]) == 1


def test_bench_merges_as_it_is_told(place, model, capsys):
    assert main(["bench", "images/0.png", *model, "--merge-to", "0.5", "--batch", "2", "--rounds", "1"]) == 0
    assert "merge_to 0.5" in capsys.readouterr().out
    assert main(["bench", "images/0.png", *model, "--tau", "1.05", "--gbm-layers", "--rounds", "1"]) == 0
    assert "1.00 x fewer" in capsys.readouterr().out
    assert files(place) == set()


def test_what_tune_found_is_saved_whatever_happens_then(place, model, monkeypatch):
    def fails(*_):
        raise RuntimeError("no ink")

    monkeypatch.setattr("algm_patch.settings.record.Record.__str__", fails)
    assert main(["tune", "images", *model, "--keep", "0.5", "--budget", "60s"]) == 1
    assert files(place) == {"algm_out/settings.json"}
    monkeypatch.undo()
    monkeypatch.chdir(place)
    monkeypatch.setattr("algm_patch.cli.commands.pareto", fails)
    assert main(["tune", "images", *model, "--keep", "0.5", "--budget", "60s", "--out", "new"]) == 1
    assert "new/settings.json" in files(place)


def test_settings_that_cannot_be_saved_are_printed(place, model, capsys):
    (place / "new" / "settings.json").mkdir(parents=True)
    assert main(["tune", "images", *model, "--keep", "0.5", "--budget", "60s", "--out", "new"]) == 1
    found = capsys.readouterr()
    assert "those that none beats at the same or less cost" in found.out
    assert "settings.json" in found.err


def test_a_place_that_is_none_is_told_before_anything_is_measured(place, model, monkeypatch, capsys):
    (place / "file").write_text("")
    monkeypatch.setattr("algm_patch.cli.commands.tune", None)
    assert main(["tune", "images", *model, "--out", "file"]) == 1
    assert "file" in capsys.readouterr().err


def test_models(capsys):
    assert main(["models", "vit_base_patch16_dinov3"]) == 0
    assert main(["models", NAME, "swin_tiny_patch4_window7_224"]) == 1
    first, *_, last = capsys.readouterr().out.splitlines()
    assert main(["models", "vit_*_patch16_dinov3", "dinov?"]) == 0
    assert {line.split(" ")[0] for line in capsys.readouterr().out.splitlines()} >= {
        "vit_base_patch16_dinov3",
        "dinov2",
    }
    assert first == "vit_base_patch16_dinov3 (Eva): patched"
    assert last.startswith("swin_tiny_patch4_window7_224 (SwinTransformer): ")
    assert "patched" not in last.split(": ")[1][:8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nowhere.png", "--model", NAME], "nowhere.png"),
        (["bench", "nowhere.png", "--model", "resnet18"], "resnet18 cannot be patched: there is no sequence"),
        (["bench", "nowhere.png", "--model", "vit_small_patch16_224"], "it has in another shape 151 (cls_token ["),
        (["bench", "nowhere.png", "--model", "deit_tiny_distilled_patch16_224"], "of 155 it lacks 3 (dist_token, "),
        (["show", "images/0.png", "--model", "empty"], "--weights and --size are of timm's models"),
        (["show", "images/0.png", "--model", NAME, "--device", "cuda:77"], "--device cuda:77 cannot be used: "),
        (["show", "images/0.png", "--model", NAME, "--device", "gpu"], "--device gpu cannot be used: "),
        (["show", "text.png", "--model", NAME], "text.png is not an image"),
        (["show", "images/0.png", "--model", "vit_huge"], "has no model 'vit_huge'"),
        (["show", "images/0.png", "--model", NAME, "--weights", "nowhere.pth"], "nowhere.pth is not there"),
        (["show", "images/0.png", "--model", NAME, "--settings", "text.png"], "text.png is not JSON"),
        (["show", "images/0.png", "--model", NAME, "--weights", "text.png"], "text.png has no weights for vit_tiny"),
        (["show", "images/0.png", "--model", NAME, "--settings", "cut.safetensors"], "cut.safetensors is damaged"),
        (["tune", "images/0.png", "--model", NAME], "images/0.png is not a folder"),
        (["tune", "empty", "--model", NAME], "empty holds no images"),
        (["models", "vit_huge"], "nor transformers, as installed, has a model vit_huge"),
    ],
)
def test_what_is_wrong_is_said(place, weights, capsys, arguments, message):
    (place / "text.png").write_text("no image")
    (place / "empty").mkdir()
    (place / "cut.safetensors").write_bytes(weights.read_bytes()[:1000])
    if "--weights" not in arguments and "models" not in arguments:
        arguments = [*arguments, "--weights", str(weights)]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert files(place) == {"text.png", "cut.safetensors"}


@pytest.mark.parametrize("option", ["--batch", "--rounds", "--size"])
@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_counts_are_whole_and_positive(option, count, capsys):
    given_ = [count] * (2 if option == "--size" else 1)
    with pytest.raises(SystemExit) as caught:
        main(["bench", "image.png", "--model", NAME, option, *given_])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert f"argument {option}" in error
    assert "whole number from 1 on" in error or "expected" in error  # which says argparse of "-1"


def test_help_and_usage(capsys):
    for arguments, code, words in ((["--help"], 0, "tune"), (["show", "--help"], 0, "--tau"), (["draw"], 2, "invalid")):
        with pytest.raises(SystemExit) as done:
            main(arguments)
        assert done.value.code == code
        assert words in "".join(capsys.readouterr())


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "algm_patch", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0
    assert "algm-patch tune" in done.stdout


def test_the_console_script_is_the_module():
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[2] / "setup.cfg")
    name, _, target = config["options.entry_points"]["console_scripts"].strip().partition(" = ")
    module, _, function = target.partition(":")
    assert (name, getattr(import_module(module), function)) == ("algm-patch", main)


def test_version(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"algm_patch {__version__}\n"


def actions(of):
    """Return the options and arguments of a parser, and those of its commands."""
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from actions(command)
        else:
            yield of.prog, action


def test_every_option_has_a_sentence_of_help():
    found = list(actions(parser(None)))
    assert {prog.split(" ")[-1] for prog, _ in found} == {"algm-patch", "show", "tune", "bench", "models"}
    dumb = [(prog, each.dest) for prog, each in found if not re.fullmatch(r"[A-Z][^A-Z].*\.", each.help or "")]
    assert dumb == []
