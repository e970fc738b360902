"""The README's code runs as it stands, and the figures of its first table are what its command gives."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from skimage.data import astronaut

from algm_patch import adapters, remove_algm
from tests.support import models

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
QUICKSTART = re.findall(r"^\| `(--tau .*?)`.*? \| (.*?) \| .*? × \| (.*?) \|$", README, re.MULTILINE)


def small():
    return models.build("ViT", grid=(8, 8))


def test_the_code_blocks_run(monkeypatch, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    names = {"model": small(), "images": models.photo(grid=(8, 8))}
    (one_line, use, see, find, own_blocks, compiled, exported) = blocks
    exec(one_line, names)
    assert hasattr(names["model"], "algm")
    use, replaced = re.subn(r"timm\.create_model\(\"(.*?)\", pretrained=True, img_size=512\)\.eval\(\)", "small()", use)
    assert replaced == 1
    assert timm.is_model("vit_base_patch16_224")
    with torch.no_grad():
        exec(use, {**names, "small": small})
    assert (tmp_path / "merged.png").is_file()
    picture = Image.fromarray(astronaut()[:128, :128])
    for folder in ("photos", "frames"):
        (tmp_path / folder).mkdir()
        picture.save(tmp_path / folder / "1.png")

    def predict(model, images):
        return model.forward_features(images)[:, 1:, :3].mT.unflatten(2, (8, 8))

    exec(see, {**names, "picture": picture, "predict": predict, "names": ["sky", "road", "tree"]})
    with Image.open(tmp_path / "merging.gif") as film:
        assert film.format == "GIF"
    find, replaced = re.subn("10min", "5s", find)
    assert replaced == 1
    exec(find, names)
    written = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert written == {"merged.png", "merging.gif", "pareto.png", "settings.json"}
    remove_algm(names["model"])
    exec(compiled, {**names, "torch": torch})
    whole = names["model"]
    exec(exported, {**names, "torch": torch})
    assert whole.algm.merge_to == 0.6
    assert (tmp_path / "model.onnx").is_file()
    monkeypatch.setattr(adapters, "ADAPTERS", {})
    exec(own_blocks, names)
    assert list(adapters.ADAPTERS) == ["mypackage.models.Block.forward"]


@pytest.fixture(scope="module")
def quickstart():
    sys.path.insert(0, str(ROOT / "examples"))
    import quickstart

    return quickstart


@pytest.mark.parametrize(("arguments", "gflops", "correlation"), QUICKSTART)
def test_the_table_is_what_the_quickstart_gives(quickstart, arguments, gflops, correlation):
    """All but the times. Of the correlation, what other kernels round otherwise may turn its last digit."""
    model, plain, image, predict, _ = quickstart.prepared(quickstart.parse(shlex.split(arguments)))
    with torch.inference_mode():
        answers = torch.stack([predict(plain, image).flatten(), predict(model, image).flatten()])
    merging, without = model.algm.gflops, model.algm.unpatched_gflops
    whole = f" of {without:.1f}" if "auto" in arguments else ""
    assert gflops == f"{merging:.1f}{whole}: {without / merging:.2f} × fewer"
    assert torch.corrcoef(answers)[0, 1].item() == pytest.approx(float(correlation), abs=1e-4)


def test_the_table_of_the_quickstart_is_there():
    assert len(QUICKSTART) == 4
