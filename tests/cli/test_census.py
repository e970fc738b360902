"""Every model of timm and every vision model of transformers is patched and contract-checked, or refused by name.

A class that a newer library brings does not fail the test as long as it is refused or of a kind that the contract
covers. `python -m benchmarks.evaluation.census` writes the table of them all.
"""

import re
from contextlib import nullcontext

import pytest
import timm
import transformers

from algm_patch.cli.census import PATCHED, Outcome, timm_models, transformers_models
from algm_patch.patching.find_vit import find_vit
from algm_patch.patching.naming import full_name
from benchmarks.evaluation import census
from tests.support import cases_huggingface, cases_timm


def kind(model):
    """Return the classes of a model's trunk and of its blocks, which decide if the contract covers the model."""
    trunk, vit = find_vit(model)
    return full_name(trunk), frozenset(map(full_name, vit.blocks))


@pytest.fixture(scope="module")
def covered():
    return {kind(case.build()) for case in (*cases_timm.CASES.values(), *cases_huggingface.CASES.values())}


def surveyed(outcomes, covered):
    """Assert that the contract covers every patched model. Return the outcomes without their models."""
    results = []
    for found in outcomes:
        if found.found == PATCHED:
            assert kind(found.model) in covered, f"patched, but in no contract case: {kind(found.model)}"
        results.append(Outcome(found.name, found.cls, found.found, None))
    return results


def check_table(library, version, results):
    """Assert that the table in the tree, if this version wrote it, has these results."""
    written = re.split(r"^(?=## )", census.TABLE.read_text(), flags=re.MULTILINE)
    old = next((part for part in written if part.startswith(f"## {library} {version}\n")), None)
    new = census.section(library, version, results)
    assert old is None or patched_rows(old) == patched_rows(new), "run: python -m benchmarks.evaluation.census"


def patched_rows(section):
    return re.findall(r"^\| (\S+) \| (\d+) \| patched \|$", section, re.MULTILINE)


def test_timm(covered):
    results = surveyed(timm_models(), covered)
    assert len(results) == len(timm.list_models())
    check_table("timm", timm.__version__, results)
    patched = {result.cls for result in results if result.found == PATCHED}
    assert {"VisionTransformer", "Eva", "Beit", "NaFlexVit", "VisionTransformerRelPos"} <= patched
    assert not patched & {"SwinTransformer", "Hiera", "VisionTransformerSAM", "MultiScaleVit", "ResNet"}
    plain = [result.found for result in results if result.cls in ("VisionTransformer", "VisionTransformerDistilled")]
    assert plain.count(PATCHED) > 150
    assert all(found == PATCHED or "ParallelScalingBlock, its attention and MLP share one" in found for found in plain)


def test_transformers(covered):
    results = surveyed(transformers_models(), covered)
    check_table("transformers", transformers.__version__, results)
    patched = {result.cls for result in results if result.found == PATCHED}
    assert {"ViTModel", "DeiTModel", "Dinov2Model", "DINOv3ViTModel", "BeitModel", "Data2VecVisionModel"} <= patched
    assert {"CLIPVisionModel", "SiglipVisionModel", "Siglip2VisionModel", "ViTMAEModel", "DPTModel"} <= patched
    assert not patched & {"SwinModel", "HieraModel", "SamVisionModel", "VitDetModel", "SegformerModel", "ResNetModel"}


def test_a_section_of_the_table():
    found = [("a", "Vit", PATCHED), ("b", "Vit", PATCHED), ("c", "Vit", "not built: no x|y"), ("d", "Net", "no blocks")]
    section = census.section("timm", "1.0", [Outcome(*each, None) for each in found])
    title, _, summary, _, *rows = section.splitlines()
    assert title == "## timm 1.0"
    assert summary.startswith("Of 4 models 2 are patched (1 classes) and 1 refused")
    assert "1 could not be built" in summary
    assert rows[2:] == ["| Vit | 2 | patched |", "| Net | 1 | no blocks |", "| Vit | 1 | not built: no x/y |"]
    assert patched_rows(section) == [("Vit", "2")]


def test_the_table_is_written_by_the_command_alone(monkeypatch, tmp_path):
    (tmp_path / "coverage.md").write_text("before")
    monkeypatch.setattr(census, "TABLE", tmp_path / "coverage.md")
    for models in ("timm_models", "transformers_models"):
        monkeypatch.setattr(census, models, lambda: iter([Outcome("a", "Vit", PATCHED, None)]))
    census.main()
    text = (tmp_path / "coverage.md").read_text()
    assert text.startswith(census.HEAD)
    assert re.findall("^## .*", text, re.MULTILINE) == [
        f"## timm {timm.__version__}",
        f"## transformers {transformers.__version__}",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["coverage.md"]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "resnet18", "tresnet_m"])
def test_weights_that_are_not_filled_change_no_outcome(monkeypatch, name):
    """The models are the same as well, but for values that none of them has."""
    (quick,) = timm_models([name])
    monkeypatch.setattr("algm_patch.cli.census.Unfilled", nullcontext)
    (slow,) = timm_models([name])
    assert (quick.cls, quick.found) == (slow.cls, slow.found)
    shapes = [[(key, value.shape) for key, value in each.model.state_dict().items()] for each in (quick, slow)]
    assert shapes[0] == shapes[1]
