"""README and docs: code runs as it stands, figures are those of their commands, links and names lead somewhere."""

import ast
import os
import re
import shlex
import subprocess
import sys
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from textwrap import dedent

import matplotlib
import pytest
import quickstart
import timm
import torch

import algm_patch
from algm_patch import Algm, Settings, adapters, apply_algm, functional, viz
from algm_patch.settings import renamed

matplotlib.use("agg")

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [README, *PAGES]
LANGUAGES = {"python", "bash", "text", "mermaid", "toml", "yaml"}

TRY_IT = "python3 -m venv .venv && .venv/bin/pip install -e '.[demo]' && .venv/bin/python examples/quickstart.py"
TEST = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest -n auto"


@dataclass(frozen=True)
class Fence:
    """A fenced block: its language, its text, and the number of the line before that text."""

    language: str
    text: str
    line: int


def fences(text):
    found = re.finditer(r"^ *```(\w*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return [Fence(match[1], dedent(match[2]), text[: match.start(2)].count("\n")) for match in found]


def python_blocks(document):
    return [fence for fence in fences(document.read_text()) if fence.language == "python"]


def section(document, heading):
    """Return the text under a heading of level two."""
    (text,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", document.read_text(), re.DOTALL | re.MULTILINE)
    return text


def name_of(document):
    return document.relative_to(ROOT).as_posix()


# -- the code


@pytest.fixture
def names(monkeypatch, tmp_path):
    """Return the names of a fresh Python, whose working directory is empty; what it registers goes with it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(adapters.registry, "ADAPTERS", dict(adapters.registry.ADAPTERS))
    with torch.set_grad_enabled(True), warnings.catch_warnings():
        warnings.filterwarnings("error", "algm_patch", DeprecationWarning)
        yield {"__name__": "__main__"}


@pytest.mark.parametrize("block", python_blocks(README), ids=lambda block: f"line {block.line}")
def test_each_block_of_the_readme_runs_pasted_into_a_fresh_python(block, tmp_path):
    """Alone, in an empty folder, and without a hub."""
    if "transformers" in block.text:
        pytest.importorskip("transformers")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.prompt"],
        input=block.text,
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("wrong", ["1 / 0", "import no_such_module", "print(", "if 1:\n    pass\nprint()"])
def test_a_block_that_fails_at_the_prompt_is_found(wrong):
    command = [sys.executable, "-m", "tests.support.prompt"]
    assert subprocess.run(command, input=wrong, text=True, capture_output=True, cwd=ROOT).returncode != 0


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=name_of)
def test_the_blocks_of_a_page_run_in_order(names, page):
    for block in python_blocks(page):
        exec(compile("\n" * block.line + block.text, str(page), "exec"), names)  # an error names the page's line


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_fence_names_its_language(document):
    text = document.read_text()
    assert text.count("```") == 2 * len(fences(text))
    assert {fence.language for fence in fences(text)} <= LANGUAGES


# -- the README


def test_the_readme_is_short():
    assert len(README.read_bytes()) <= 7000


def test_the_readme_has_its_commands():
    """CI reads the second one: the first block under the heading Test."""
    for heading, command in {"Try it": TRY_IT, "Test": TEST}.items():
        assert fences(section(README, heading))[0].text.strip() == command


def test_the_first_block_of_the_readme_is_twelve_lines():
    assert len([line for line in python_blocks(README)[0].text.splitlines() if line]) <= 12


@pytest.mark.parametrize("clap_layer", [None, 1])
def test_counts_follow_from_settings_with_thresholds(clap_layer):
    """Take counts from thresholds, also where CLAP and GBM merge in the same block."""
    (block,) = [each.text for each in python_blocks(ROOT / "docs" / "tuning.md") if "def patches" in each.text]
    model = timm.create_model("vit_tiny_patch16_224", depth=4, img_size=96, num_classes=0).eval()
    images = torch.nn.functional.interpolate(torch.rand(2, 3, 3, 3), size=96)
    best = Settings(clap_layer=clap_layer, gbm_layers=(1, 2), tau=0.5, gbm_tau=(0.9, 0.8), matching="mutual")
    apply_algm(model, settings=best)
    model(images[:1])
    before = model.algm.tokens_per_layer
    exec(block, {"model": model, "images": images, "best": best, "apply_algm": apply_algm})
    model(images[:1])
    assert len(model.algm.merge_to) == 2 + (clap_layer is not None)
    assert model.algm.tokens_per_layer == before


# -- figures


def quickstart_rows(document):
    pattern = r"^\| `(--tau .*?)`.*? \| (.*?) \| .*? × \| (.*?) \|$"
    return re.findall(pattern, document.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("arguments", "gflops", "correlation"), quickstart_rows(README))
def test_the_table_is_what_the_quickstart_gives(arguments, gflops, correlation):
    """All but the times. Of the correlation, what other kernels round otherwise may turn its last digit."""
    model, plain, image, predict, _ = quickstart.prepared(quickstart.parse(shlex.split(arguments)))
    with torch.inference_mode():
        answers = torch.stack([predict(plain, image).flatten(), predict(model, image).flatten()])
    merging, without = model.algm.gflops, model.algm.unpatched_gflops
    whole = f" of {without:.1f}" if "auto" in arguments else ""
    assert gflops == f"{merging:.1f}{whole}: {without / merging:.2f} × fewer"
    assert torch.corrcoef(answers)[0, 1].item() == pytest.approx(float(correlation), abs=1e-4)
    if "auto" in arguments:
        clap, gbm = (model.algm.tokens_per_layer[layer] - 1 for layer in (0, -1))
        assert f"Of 1369 patches CLAP leaves {clap}, GBM {gbm}." in README.read_text()
        page = (ROOT / "docs" / "benchmarks.md").read_text()
        assert f"of 1369 patches CLAP leaves {clap} from layer 1 on, and GBM {gbm} from layer 5 on." in page


def test_the_table_of_the_quickstart_is_the_same_in_both_places():
    assert len(quickstart_rows(README)) == 4
    assert quickstart_rows(README) == quickstart_rows(ROOT / "docs" / "benchmarks.md")


# -- names


def test_the_settings_page_has_every_field_with_its_default():
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", section(ROOT / "docs" / "settings.md", "All fields"), re.MULTILINE)
    assert {name: ast.literal_eval(value) for name, value in rows} == {
        field.name: field.default for field in fields(Settings)
    }


def test_the_facts_of_the_first_page_are_those_of_the_handle():
    rows = re.findall(r"^\| (`.*?`) \|", section(ROOT / "docs" / "index.md", "What the model says of itself"), re.M)
    named = re.findall(r"`(\w+)", " ".join(rows))
    assert named
    assert all(hasattr(Algm, name) for name in named)


@pytest.mark.parametrize("module", [algm_patch, functional, viz, adapters], ids=lambda module: module.__name__)
def test_every_public_name_is_documented(module):
    text = "".join(page.read_text() for page in PAGES)
    assert [name for name in module.__all__ if not re.search(rf"\b{name}\b", text) and name != "__version__"] == []


def test_every_old_name_has_its_new_one():
    text = (ROOT / "docs" / "migrating.md").read_text()
    for old, new in renamed.SETTINGS.items():
        assert re.search(rf"^\| `{old}\b.*\| `{new}\b", text, re.MULTILINE), old
    for old, wing in algm_patch.MOVED.items():
        assert re.search(rf"^\|.*`{old}`.*\| from `algm_patch\.{wing}`", text, re.MULTILINE), old
    assert f"`{renamed.WITHOUT_EFFECT}=" in text


# -- links, files, commands


def anchors(text):
    """Return the anchors of the headings, as GitHub and mkdocs make them."""
    without_code = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", without_code, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document):
    """Links of a page of docs stay in docs: the site is built of that alone."""
    for target in re.findall(r"\]\((?!https?://)(.*?)\)", document.read_text()):
        path, _, anchor = target.partition("#")
        linked = (document.parent / path) if path else document
        assert linked.is_file(), target
        assert not anchor or anchor in anchors(linked.read_text()), target
        assert document == README or linked.resolve().is_relative_to(ROOT / "docs"), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_files_that_are_named_exist(document):
    folders = "algm_patch|benchmarks|docs|examples|tests"
    for path in re.findall(rf"(?<![\w./-])(?:{folders})/[\w./*-]*\.\w+", document.read_text()):
        assert list(ROOT.glob(path)), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_benchmarks_that_are_named_exist(document):
    for module in re.findall(r"\bbenchmarks(?:\.\w+){2}", document.read_text()):
        assert ROOT.joinpath(*module.split(".")).with_suffix(".py").is_file(), module


def test_options_of_commands_are_those_of_a_parser():
    folders = ("algm_patch", "benchmarks", "examples")
    sources = "".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))
    known = {*re.findall(r'"(--[\w-]+)"', sources), "--help"}
    commands = r"(?:-m benchmarks\.[\w.]+|-m algm_patch|algm-patch|examples/\w+\.py) ((?:\\\n|[^`\n])*)"
    for document in DOCUMENTS:
        given = " ".join(re.findall(commands, document.read_text()))
        assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", given)) <= known, name_of(document)
