"""Each engine runs both exports of a model, and computes what torch does."""

import pytest

from benchmarks.cost import engines


@pytest.mark.slow
def test_every_engine_has_a_row(capsys):
    for package in engines.PACKAGES:
        pytest.importorskip(package)
    found = engines.main(["--model", "test_vit", "--size", "96", "--rounds", "1"])
    assert [engine for _, engine in found] == list(engines.ENGINES)
    assert all(faster > 0 and difference < 1e-4 for faster, difference in found.values())
    assert "test_vit, one image, 96x96" in capsys.readouterr().out


def test_what_is_missing_and_impossible_shares_are_said(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        engines.main(["--saved", "2"])
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        engines.main([])
    printed = capsys.readouterr().err
    assert "between 0 and 1, not '2'" in printed
    assert "pip install onnx onnxruntime onnxscript openvino" in printed
