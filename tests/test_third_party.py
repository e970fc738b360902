"""The runner of tests/third_party.py, on checkouts made for these tests."""

import pytest

from tests import third_party
from tests.support.third_party_rows import ROWS

# What stands in the place of MAE's file with the ViT, and what comes of it.
VIT = "from timm.models.vision_transformer import VisionTransformer as Vit\n"
FINETUNED = f"""{VIT}
class VisionTransformer(Vit):
    def __init__(self, global_pool, **size):
        super().__init__(**size)
"""
RANDOM = """
    def forward_features(self, x):
        return super().forward_features(x) * x.new_empty(1).normal_()
"""
OUTCOMES = {
    "a ViT": (FINETUNED, "patched"),
    "no ViT": (
        FINETUNED + "        self.blocks = None\n",
        "refused: ValueError: VisionTransformer cannot be patched: ",
    ),
    "another library": ("import nowhere", "could not be built: ModuleNotFoundError: No module named 'nowhere'"),
    "ends the process": ("import os\nos._exit(3)", "the process ended with 3: "),
    "never ends": ("import time\ntime.sleep(600)", "not finished in 20 s"),
    "random": (
        FINETUNED
        + "    def forward_features(self, x):\n        return super().forward_features(x) * x.new_empty(1).normal_()",
        "patched, then: RuntimeError: the unpatched model gives something else each time",
    ),
}


@pytest.fixture
def row():
    (row,) = (row for row in ROWS if row.name == "mae_finetuned")
    return row


@pytest.mark.parametrize("kind", OUTCOMES)
def test_no_project_ends_the_run(kind, row, tmp_path, monkeypatch):
    """Each outcome is a row of its own, whatever the project's code does."""
    code, outcome = OUTCOMES[kind]
    (tmp_path / "mae").mkdir()
    (tmp_path / "mae" / "models_vit.py").write_text(code)
    (tmp_path / "mae" / ".commit").write_text("0123456789abcdef\n")
    if kind == "never ends":
        monkeypatch.setattr(third_party, "SECONDS", 20)
    cells = third_party.run(row, tmp_path)
    assert cells["outcome"].startswith(outcome)
    assert (cells["project"], cells["commit"]) == ("mae", "01234567")
    if outcome == "patched":
        assert cells["class"] == "models_vit.VisionTransformer"
        assert cells["tokens after each layer"].startswith("16x2 ")
        assert [cells["full grid outside"], cells["merging nothing"], cells["removed"]] == ["yes", "bitwise", "bitwise"]
        assert float(cells["shuffled tokens"]) < 1e-4


def test_a_folder_may_lack_projects(tmp_path, monkeypatch):
    monkeypatch.setattr(third_party, "TABLE", tmp_path / "table.md")
    monkeypatch.setattr("sys.argv", ["third_party.py", str(tmp_path)])
    third_party.main()
    rows = third_party.old_rows()
    assert list(rows) == ["row", *(row.name for row in ROWS)]
    assert all("| not there: " in rows[row.name] for row in ROWS)


def test_rows_of_other_projects_stay(row, tmp_path, monkeypatch):
    monkeypatch.setattr(third_party, "TABLE", tmp_path / "table.md")
    first, last = ROWS[0], ROWS[-1]
    empty = dict.fromkeys(third_party.COLUMNS, "")
    for each, outcome in ((last, "patched"), (first, "patched"), (last, "refused")):
        third_party.write(each, empty | {"row": each.name, "outcome": outcome})
    lines = third_party.TABLE.read_text().splitlines()[-2:]
    assert [first.name in lines[0], "patched" in lines[0], last.name in lines[1], "refused" in lines[1]] == [True] * 4


def test_a_name_that_is_none_is_told_from_those_that_are(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["third_party.py", ".", "dinov9"])
    with pytest.raises(SystemExit):
        third_party.main()
    assert "no dinov9: there are" in capsys.readouterr().err


def test_the_rows_are_told_apart():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
