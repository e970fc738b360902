"""The command tune, where the user interrupts it or an image is broken; and models of transformers."""

from itertools import count

import numpy as np
import pytest
import torch
from PIL import Image

from algm_patch import Settings
from algm_patch.cli.inputs import load_transformers
from algm_patch.cli.main import main
from algm_patch.images.normalization import normalization
from algm_patch.tuning.bench import Bench


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Change into a folder with images and a model of transformers."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{seed}.png")
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 96}
    transformers.ViTModel(transformers.ViTConfig(image_size=96, **sizes)).save_pretrained("vit")
    transformers.ViTImageProcessor(image_mean=[0.25] * 3).save_pretrained("vit")
    return tmp_path


TUNE = ["tune", "images", "--model", "./vit", "--keep", "0.5", "--budget", "60s", "--device", "cpu"]


def interrupted_after(monkeypatch, verified):
    """Raise KeyboardInterrupt where settings would be measured once more than so often."""
    numbers, verify = count(), Bench.verify

    def interrupted(bench, settings):
        if next(numbers) == verified:
            raise KeyboardInterrupt
        return verify(bench, settings)

    monkeypatch.setattr(Bench, "verify", interrupted)


def test_after_an_interrupt_the_best_so_far_is_written_and_marked(place, monkeypatch, capsys):
    interrupted_after(monkeypatch, 1)
    assert main(TUNE) == 0
    settings = Settings.load("algm_out/settings.json")
    assert "cut short: it was interrupted" in settings.record.notes
    assert len(settings.record.trials) == 1
    assert "cut short: it was interrupted" in capsys.readouterr().out
    assert (place / "algm_out" / "pareto.png").is_file()


def test_an_interrupt_before_anything_was_found_writes_nothing(place, monkeypatch, capsys):
    interrupted_after(monkeypatch, 0)
    assert main(TUNE) == 130
    assert capsys.readouterr().err.endswith("\ninterrupted\n")
    assert not list((place / "algm_out").iterdir())


def test_a_broken_image_is_left_out_in_one_line(place, monkeypatch, capsys):
    (place / "images" / "broken.png").write_text("no image")
    interrupted_after(monkeypatch, 1)
    assert main(TUNE) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "images/broken.png is not an image that can be read" in warnings[0]
    assert Settings.load("algm_out/settings.json").record.images == 3


def test_the_order_of_images_and_what_is_saved_can_be_chosen(place, monkeypatch):
    given = {}
    monkeypatch.setattr("algm_patch.cli.commands.tune", lambda *_, **options: given.update(options) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([*TUNE, "--cost", "time", "--seed", "3"])
    assert given == {"budget": "60s", "cost": "time", "seed": 3}


@pytest.mark.parametrize("command", ["show", "bench"])
def test_models_of_transformers(place, capsys, command):
    options = ["--rounds", "1"] if command == "bench" else []
    assert main([command, "images/0.png", "--model", "./vit", "--gbm-layers", "3", *options]) == 0
    found = capsys.readouterr()
    assert "ALGM on ViTModel, 4 blocks" in found.out
    assert "warning" not in found.err  # it has its processor
    assert main([command, "images/0.png", "--model", "./nowhere", *options]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ./nowhere is no model that transformers can load: ")
    assert "\n" not in error


def test_a_backbone_of_transformers(place, capsys):
    transformers = pytest.importorskip("transformers")
    config = transformers.VitPoseBackboneConfig(hidden_size=48, num_hidden_layers=4, num_attention_heads=3)
    transformers.VitPoseBackbone(config).save_pretrained("pose")
    assert main(["show", "images/0.png", "--model", "./pose", "--gbm-layers", "3"]) == 0
    assert "ALGM on VitPoseBackbone, 4 blocks" in capsys.readouterr().out
    transformers.UperNetConfig().save_pretrained("upernet")
    assert main(["show", "images/0.png", "--model", "./upernet"]) == 1
    assert "./upernet is of the type upernet, and transformers has no bare model of it" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_the_image_part_of_a_model_of_images_and_texts(place, family, capsys):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 96}
    config = getattr(transformers, f"{family}Config")(
        vision_config={**sizes, "image_size": 96, "patch_size": 16}, text_config={**sizes, "vocab_size": 64}
    )
    getattr(transformers, f"{family}Model")(config).save_pretrained("towers")
    transformers.ViTImageProcessor(image_mean=[0.25] * 3).save_pretrained("towers")
    tower = load_transformers("./towers")
    assert normalization(tower, tower)[0].flatten().tolist() == [0.25] * 3
    assert main(["bench", "images/0.png", "--model", "./towers", "--rounds", "1", "--gbm-layers", "3"]) == 0
    assert f"ALGM on {type(tower).__name__}, 4 blocks" in capsys.readouterr().out
