"""Ablations: tables as published, rows that merge equally much, and a run on a tiny data set."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from algm_patch import Settings
from benchmarks.common.patching import patched
from benchmarks.evaluation import options
from benchmarks.evaluation.models import SegmentationModel
from benchmarks.paper import ablation_tables, ablations, equal_merging
from tests.support import models

GRID = (6, 6)
SIZE = (GRID[0] * 16, GRID[1] * 16)
BASE = Settings(clap_layer=1, gbm_layers=(5,), tau=0.9, gbm_tau=0.96)


class Segmenter(nn.Module):
    def __init__(self, family: str = "ViT") -> None:
        super().__init__()
        self.vit = models.build(family, GRID, depth=8)
        self.head = nn.Conv2d(64, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        (features,) = self.vit.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        return self.head(features)


def model(family: str = "ViT") -> SegmentationModel:
    return SegmentationModel(Segmenter(family), 3, (0.5,) * 3, (0.2,) * 3, SIZE, name="tiny").eval()


def images() -> list[Tensor]:
    return list(models.photo(batch=6, grid=GRID).split(1))


@pytest.fixture
def arguments(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for i, photo in enumerate(images()):
        pixels = (photo[0].permute(1, 2, 0) * 40 + 128).clamp(0, 255).byte().numpy()
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
        label = generator.integers(0, 3, SIZE, np.uint8)
        Image.fromarray(label).save(tmp_path / "labels" / f"{i}.png")
    data = ["--layout", "folder", "--data", str(tmp_path), "--model", "tiny", "--size", *map(str, SIZE)]
    measuring = ["--images", "1", "--rounds", "1", "--records", str(tmp_path / "records"), "--device", "cpu"]
    return [*data, *measuring, "--gbm-tau", "0.96", "--tau", "0.9"]


def rows_of(name: str) -> dict[str, Settings]:
    return {row.label: row.settings for table in ablation_tables.TABLES[name](BASE, 12) for row in table.rows}


def test_rows_differ_from_the_reference_in_what_their_table_is_about():
    assert rows_of("feature")["K (Key)"] == replace(BASE, compare="key")
    assert rows_of("reduce")["Pick random token"] == replace(BASE, reduce="pick")
    assert rows_of("place")["After MLP"] == replace(BASE, place="after_mlp")
    assert rows_of("clap")["3"] == replace(BASE, clap_layer=3)
    assert rows_of("gbm")["5 & 7"] == replace(BASE, gbm_layers=(5, 7))
    assert rows_of("window")["3×3"] == replace(BASE, window=(3, 3))
    for name, label in {"feature": "T (Token)", "reduce": "Take average", "clap": "1", "gbm": "5"}.items():
        assert rows_of(name)[label] == BASE


def test_table_5_is_at_the_same_parts_of_the_depth():
    layers = {
        depth: [row.settings.gbm_layers for row in ablation_tables.gbm(BASE, depth)[1].rows] for depth in (12, 40)
    }
    assert layers == {12: [(3, 6, 9), (3, 6), (3,)], 40: [(11, 21, 31), (11, 21), (11,)]}


def tokens_left(network: Any, settings: Settings) -> tuple[int, int]:
    """Return the tokens that CLAP leaves and those that remain in the end, summed over all images."""
    counts = []
    assert settings.clap_layer is not None
    with patched(network, settings), torch.no_grad():
        for image in images():
            network(image)
            counts.append(network.vit.algm.tokens_per_layer)
    return sum(count[settings.clap_layer - 1] for count in counts), sum(count[-1] for count in counts)


@pytest.mark.parametrize("name", ["feature", "place", "clap", "window"])
def test_every_row_merges_as_many_tokens(name):
    network = Segmenter()
    base, merged = equal_merging.count_merged(network, images(), BASE)
    assert base == BASE
    wanted = tokens_left(network, base)
    assert merged.local == 6 * 37 - wanted[0] > 0
    assert merged.everywhere == (wanted[0] - wanted[1],)
    assert merged.everywhere[0] > 0
    (table,) = ablation_tables.TABLES[name](base, 8)
    for row in equal_merging.equalise(network, images(), table, base, merged).rows:
        found = tokens_left(network, row.settings)
        rest = merged.local % (row.settings.window[0] * row.settings.window[1] - 1)
        assert abs(found[0] - wanted[0]) <= rest, row
        if table.equal:
            assert found[0] - found[1] == merged.everywhere[0], row


def test_several_layers_of_gbm_each_merge_as_many():
    network, base = Segmenter(), replace(BASE, gbm_layers=(3, 5), gbm_tau=0.98)
    base, merged = equal_merging.count_merged(network, images(), base)
    assert len(merged.everywhere) == 2
    assert min(merged.everywhere) > 0
    row = equal_merging.equal_gbm(network, images(), replace(base, compare="key"), merged.everywhere)
    assert equal_merging.count_merged(network, images(), row)[1].everywhere == merged.everywhere


def test_without_a_threshold_the_reference_has_that_of_the_data_set():
    base, _ = equal_merging.count_merged(Segmenter(), images(), replace(BASE, tau="auto"))
    assert isinstance(base.tau, float)
    assert -1 < base.tau < 1


def test_a_run_prints_every_table_with_its_published_rows(arguments, monkeypatch, capsys):
    monkeypatch.setattr(options, "load", lambda *_, **__: model())
    ablations.main(["all", *arguments])
    text = capsys.readouterr().out
    captions = re.findall(r"^(?:Table \w+|Window size)\.", text, re.MULTILINE)
    assert captions == ["Table 4a.", "Table 4b.", "Table 4c.", "Table 4e.", "Table 4f.", "Table 5.", "Window size."]
    assert re.search(r"^Pick random token +[\d.]+ +[\d.]+ × +[\d.]+ .*\| +45\.0 +193 \(1\.44 ×\) +26\.1$", text, re.M)
    assert re.search(r"^2, 4, 6 .*\| 11, 21, 31 +61\.5 +2\.4 \(1\.26 ×\) +3538\.0$", text, re.M)
    for table in text.split("\n\n")[1:]:
        baselines = [line for line in table.splitlines() if line.startswith("Baseline")]
        assert len(baselines) == 1
        assert "1.00 ×" in baselines[0]
        assert len({line.index("|") for line in table.splitlines() if "|" in line}) <= 1
        assert len({line.index(" ×") for line in table.splitlines() if " ×" in line}) == 1


def test_what_a_model_does_not_take_is_said_and_the_rest_measured(arguments, monkeypatch, capsys):
    monkeypatch.setattr(options, "load", lambda *_, **__: model("ParallelThingsBlock"))
    with pytest.raises(SystemExit, match=r"error: compare='\w+': in block 1 .* Pass compare='token'"):
        ablations.main(["feature", *arguments])
    monkeypatch.setattr(ablations, "TABLES", {name: ablation_tables.TABLES[name] for name in ("feature", "reduce")})
    ablations.main(["all", *arguments])
    text = capsys.readouterr().out
    assert "Table 4c." in text
    assert "Table 4f." not in text
    assert re.search(r"^feature: compare='\w+': in block 1", text, re.M)


def test_settings_without_a_stage_are_refused_before_anything_is_loaded(arguments):
    with pytest.raises(SystemExit, match="clap_layer and gbm_layers"):
        ablations.main(["gbm", *arguments, "--gbm-layers"])
