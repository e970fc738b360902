"""Each engine runs both exports of a model, and computes what torch does."""

import pytest

from benchmarks.cost import engines

pytestmark = pytest.mark.slow


def test_every_engine_has_a_row(capsys):
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    found = engines.main(["--model", "test_vit", "--size", "96", "--rounds", "1"])
    assert [engine for _, engine in found] == list(engines.ENGINES)
    assert all(faster > 0 and difference < 1e-4 for faster, difference in found.values())
    assert "test_vit, one image, 96x96" in capsys.readouterr().out
