"""The systems that the paper compares with: none is missing, and their changes are those that were published."""

import re
from pathlib import Path

import pytest

from benchmarks.evaluation.bootstrap import Estimate
from benchmarks.paper import systems, tradeoff_points

ROOT = Path(__file__).parents[2]


def test_every_system_of_the_paper_has_a_row_with_a_source():
    changes = systems.published()
    assert {one.system for one in changes} == {
        *("ToMe", "ELViT", "AiluRus", "CTS", "EViT", "ACT", "DToP", "PAUMER", "ALGM"),
    }
    assert all(one.source and one.way in ("direct", "trained", "fine-tuned") for one in changes)


def test_changes_are_those_that_the_supplement_prints(capsys):
    """Tables 2 and 3 print differences and per cents of their own."""
    systems.main([])
    table = capsys.readouterr().out
    for row in (
        r"DToP \| SETR ViT-B, Pascal Context \| trained \| \+0\.1 \| −25 % \| – ",
        r"DToP \| SegViT ViT-L, Pascal Context \| trained \| −0\.3 \| −29 % \| – ",
        r"ALGM \| SETR ViT-B, Pascal Context \| trained, ALGM\* \| \+0\.1 \| −36 % \| – ",
        r"ALGM \| SegViT ViT-L, Pascal Context \| trained, ALGM\* \| 0\.0 \| −29 % \| – ",
        r"PAUMER \| Segmenter ViT-S, ADE20K \| trained \| −10\.7 \| – \| \+100 % ",
        r"ALGM \| Segmenter ViT-S, ADE20K \| trained \| −1\.9 \| – \| \+100 % ",
    ):
        assert re.search(rf"^\| {row}\|", table, re.MULTILINE), row


def test_the_table_of_the_documents_is_what_the_command_prints(capsys):
    systems.main([])
    assert capsys.readouterr().out in (ROOT / "docs/benchmarks.md").read_text()


def test_measured_points_stand_below(tmp_path, capsys):
    same, less = Estimate(100, 100, 100), Estimate(-0.5, -0.9, 0)
    unpatched = tradeoff_points.Point("unpatched", "", 56, 60, 1, Estimate(0, 0, 0), same, same)
    merged = tradeoff_points.Point("ELViT", "3: 40%", 55.5, 30, 0.8, less, same, same)
    tradeoff_points.write(tmp_path / "points.csv", [unpatched, merged])
    systems.main(["--measured", str(tmp_path / "points.csv"), "--title", "ViT-S, CamVid"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "| ELViT | ViT-S, CamVid | direct, 3: 40% | −0.5 | −50 % | +25 % | measured here |"
    with pytest.raises(SystemExit, match=r"error: .*nowhere\.csv"):
        systems.main(["--measured", str(tmp_path / "nowhere.csv")])
