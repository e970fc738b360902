"""Every model of timm and every vision model of transformers is patched and contract-checked, or refused by name.

Writes benchmarks/results/coverage.md. A class that a newer library brings does not fail the test as long as it is
refused or of a kind that the contract covers: it stands in the table as new.
"""

import re
from collections import defaultdict
from pathlib import Path

import cases_huggingface
import cases_timm
import pytest
import timm

from algm_patch.census import PATCHED, timm_models, transformers_models
from algm_patch.discovery import find_vit, full_name

TABLE = Path(__file__).parent.parent / "benchmarks" / "results" / "coverage.md"


def kind(model):
    """What decides whether the contract covers a model: the classes of its trunk and of its blocks."""
    trunk, vit = find_vit(model)
    return full_name(trunk), frozenset(map(full_name, vit.blocks))


@pytest.fixture(scope="module")
def covered():
    return {kind(case.build()) for case in (*cases_timm.CASES.values(), *cases_huggingface.CASES.values())}


def surveyed(outcomes, covered):
    results = []
    for found in outcomes:
        if found.found == PATCHED:
            assert kind(found.model) in covered, f"patched, but in no contract case: {kind(found.model)}"
        results.append((found.name, found.cls, found.found))
    return results


def write(library, version, results):
    """The library's section of the table, replaced. A class that its old section does not have is new."""
    old = TABLE.read_text() if TABLE.exists() else "# Which models are patched\n\n"
    title, *sections = re.split(r"^(?=## )", old, flags=re.MULTILINE)
    own = [section for section in sections if section.startswith(f"## {library} ")]
    others = [section.rstrip() for section in sections if section not in own]
    known = set(re.findall(r"^\| (\S+) ", "".join(own), re.MULTILINE))
    rows = defaultdict(list)
    for name, cls, found in results:
        rows[found != "patched", cls, found].append(name)
    patched = [cls for _, cls, found in results if found == "patched"]
    missing = [cls for _, cls, found in results if found.startswith("not built")]
    lines = [
        f"## {library} {version}",
        "",
        f"Of {len(results)} models {len(patched)} are patched ({len(set(patched))} classes) and "
        f"{len(results) - len(patched) - len(missing)} refused, with the reason in the last column; {len(missing)} "
        "could not be built.",
        "",
        "| class | models | outcome |",
        "|---|---|---|",
    ]
    for (_, cls, found), names in sorted(rows.items()):
        new = " (new)" if own and cls not in known else ""
        lines.append(f"| {cls}{new} | {len(names)} | {found.replace('|', '/')} |")
    TABLE.write_text(title + "\n\n".join(sorted([*others, "\n".join(lines)])) + "\n")


def test_timm(covered):
    results = surveyed(timm_models(), covered)
    assert len(results) == len(timm.list_models())
    write("timm", timm.__version__, results)
    patched = {cls for _, cls, found in results if found == "patched"}
    assert {"VisionTransformer", "Eva", "Beit", "NaFlexVit", "VisionTransformerRelPos"} <= patched
    assert not patched & {"SwinTransformer", "Hiera", "VisionTransformerSAM", "MultiScaleVit", "ResNet"}
    plain = [found for _, cls, found in results if cls in ("VisionTransformer", "VisionTransformerDistilled")]
    assert plain.count(PATCHED) > 150
    assert all(found == PATCHED or "ParallelScalingBlock, its attention and MLP share one" in found for found in plain)


def test_transformers(covered):
    transformers = pytest.importorskip("transformers")
    results = surveyed(transformers_models(), covered)
    write("transformers", transformers.__version__, results)
    patched = {cls for _, cls, found in results if found == "patched"}
    assert {"ViTModel", "DeiTModel", "Dinov2Model", "DINOv3ViTModel", "BeitModel", "Data2VecVisionModel"} <= patched
    assert {"CLIPVisionModel", "SiglipVisionModel", "Siglip2VisionModel", "ViTMAEModel", "DPTModel"} <= patched
    assert not patched & {"SwinModel", "HieraModel", "SamVisionModel", "VitDetModel", "SegformerModel", "ResNetModel"}
