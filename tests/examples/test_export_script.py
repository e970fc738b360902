"""The export, as a user runs it."""

from functools import partial

import export
import pytest
import timm
import torch


@pytest.fixture(autouse=True)
def _timed_once(monkeypatch):
    """Time one round: what is printed is the same as after nine."""
    monkeypatch.setattr(export, "milliseconds", partial(export.milliseconds, rounds=1))


@pytest.fixture
def exporters():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")


@pytest.mark.usefixtures("exporters")
def test_the_export(tmp_path, capsys):
    found = export.main(["--size", "126", "--out", str(tmp_path / "new")])
    printed = capsys.readouterr().out
    assert all(difference <= 1e-4 for difference in found["differences"].values())
    for name in ("unpatched", "algm"):
        assert f"{tmp_path / 'new' / name}.onnx: opset " in printed
        assert (tmp_path / "new" / f"{name}.onnx").is_file()
    assert "x faster" in printed
    assert 0 < float(found["agreement"].split("correlation ")[1].split(",")[0]) < 1


@pytest.mark.usefixtures("exporters")
def test_the_export_of_a_model_of_timm(tmp_path, capsys, monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: create(name, depth=5, **options))
    found = export.main(["--model", "vit_tiny_patch16_224", "--size", "96", "--out", str(tmp_path)])
    assert set(found["differences"]) == set(found["ms"]) == {"unpatched", "algm"}
    assert "96x96 pixels" in capsys.readouterr().out
    assert "patch features agree" in found["agreement"]


@pytest.mark.usefixtures("exporters")
def test_an_export_that_computes_something_else_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "run_onnx", lambda session, images: images + 2e-4)
    image = torch.zeros(1, 3, 4, 4)
    with pytest.raises(SystemExit, match=r"x\.onnx is wrong: its output is 2\.0e-04 from torch's, more than 1e-04"):
        export.check(None, image, image, tmp_path / "x.onnx")
    monkeypatch.setattr(export, "run_onnx", lambda session, images: images / 0)
    with pytest.raises(SystemExit, match=r"its output is nan from torch's"):
        export.check(None, image, image, tmp_path / "x.onnx")


def test_an_export_says_what_to_install(monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None if "onnx" in name else name)
    with pytest.raises(ModuleNotFoundError, match="pip install onnx onnxruntime onnxscript"):
        export.main([])


@pytest.mark.usefixtures("exporters")
def test_an_export_at_a_size_that_is_no_grid(tmp_path):
    with pytest.raises(ValueError, match="--size 500 is no multiple of the model's 14 pixels a patch"):
        export.main(["--size", "500", "--out", str(tmp_path)])
