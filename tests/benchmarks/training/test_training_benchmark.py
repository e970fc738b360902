"""Checkpoints of the training script in the benchmarks."""

from __future__ import annotations

import dense_network
import layouts
import segmentation
import train_segmentation
import training
import transformers

from algm_patch import Settings, apply_algm
from tests.support.label_images import IGNORED

run = train_segmentation.main


def test_a_checkpoint_is_measured_as_in_training(command, data, tmp_path):
    """Load it into an unpatched network and patch that; measure it by the functions and by the other benchmark."""
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
