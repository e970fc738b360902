"""Every model of timm and every vision model of transformers is patched and contract-checked, or refused by name.

Writes benchmarks/results/coverage.md. A class that a newer library brings does not fail the test as long as it is
refused or of a kind that the contract covers: it stands in the table as new.
"""

import re
import warnings
from collections import defaultdict
from pathlib import Path

import cases_huggingface
import cases_timm
import pytest
import timm
import torch

from algm_patch import apply_algm
from algm_patch.discovery import find_vit, full_name

TABLE = Path(__file__).parent.parent / "benchmarks" / "results" / "coverage.md"


def kind(model):
    """What decides whether the contract covers a model: the classes of its trunk and of its blocks."""
    trunk, vit = find_vit(model)
    return full_name(trunk), frozenset(map(full_name, vit.blocks))


@pytest.fixture(scope="module")
def covered():
    return {kind(case.build()) for case in (*cases_timm.CASES.values(), *cases_huggingface.CASES.values())}


def outcome(model, covered):
    """ "patched", or the reason of the refusal without the model's own name and numbers."""
    try:
        apply_algm(model, clap_layer=1, gbm_layers=[])
    except ValueError as error:
        return re.sub(r"^\S+ cannot be patched: ", "", str(error))
    assert kind(model) in covered, f"patched, but in no contract case: {kind(model)}"
    return "patched"


def build(make, *arguments):
    """On the meta device: only the structure matters."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*arguments)


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
    results = []
    for name in timm.list_models():
        model = build(timm.create_model, name)
        results.append((name, type(model).__name__, outcome(model, covered)))
    write("timm", timm.__version__, results)
    patched = {cls for _, cls, found in results if found == "patched"}
    assert {"VisionTransformer", "Eva", "Beit", "NaFlexVit", "VisionTransformerRelPos"} <= patched
    assert not patched & {"SwinTransformer", "Hiera", "VisionTransformerSAM", "MultiScaleVit", "ResNet"}


def vision_models():
    """Every model of transformers' auto-mapping that takes pixels, with its configuration."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING, MODEL_MAPPING_NAMES

    for name in MODEL_MAPPING_NAMES:
        try:
            found = MODEL_MAPPING[CONFIG_MAPPING[name]]
            cls = found[0] if isinstance(found, (tuple, list)) else found
            takes_pixels = cls.main_input_name == "pixel_values"
        except (ImportError, ValueError):  # needs a library for audio or text
            continue
        if takes_pixels:
            yield name, cls, CONFIG_MAPPING[name]


def test_transformers(covered):
    transformers = pytest.importorskip("transformers")
    results = []
    for name, cls, config in vision_models():
        try:
            model = build(lambda cls=cls, config=config: cls(config()))
        except (ImportError, TypeError, ValueError) as error:  # needs a library, or has no default configuration
            results.append((name, cls.__name__, f"not built: {str(error).strip().splitlines()[0]}"))
            continue
        results.append((name, cls.__name__, outcome(model, covered)))
    write("transformers", transformers.__version__, results)
    patched = {cls for _, cls, found in results if found == "patched"}
    assert {"ViTModel", "DeiTModel", "Dinov2Model", "DINOv3ViTModel", "BeitModel", "Data2VecVisionModel"} <= patched
    assert {"CLIPVisionModel", "SiglipVisionModel", "Siglip2VisionModel", "ViTMAEModel", "DPTModel"} <= patched
    assert not patched & {"SwinModel", "HieraModel", "SamVisionModel", "VitDetModel", "SegformerModel", "ResNetModel"}
