"""Files that version 0.1 saved are read: its names, and its list of calibrated thresholds."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from algm_patch import Settings, apply_algm
from tests.support.models import build

SAVED = Path(__file__).parents[1] / "data" / "settings_0.1"


@pytest.fixture(autouse=True)
def _without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def in_file(name):
    return json.loads((SAVED / f"{name}.json").read_text())["algm_patch"]


def test_what_tune_found():
    """The file has `measured`, whose trials have `metric`, and whose `others` have `taps`, `unmerge` and `tokens`."""
    settings, saved = Settings.load(SAVED / "tuned.json"), in_file("tuned")
    measured = saved["measured"]
    assert settings.clap_layer == saved["clap_layer"]
    assert settings.gbm_layers == tuple(saved["gbm_layers"])
    assert settings.tau == saved["tau"]
    assert settings.gbm_tau == tuple(saved["gbm_tau"])
    assert settings.calibrated is None
    assert settings.record is not None
    assert (settings.record.kept, settings.record.cost) == ({"cosine": measured["kept"]}, measured["cost"])
    assert settings.record.keep == {"cosine": measured["keep"]}
    assert "no bound on what is kept on others" in str(settings.record)
    assert settings.at(keep=measured["keep"]) == settings
    assert [(trial.compare, trial.kept) for trial in settings.record.trials] == [
        (trial["metric"], {"cosine": trial["kept"]}) for trial in measured["trials"]
    ]
    assert dict(settings.record.others) == {
        "window": (2, 2),
        "proportional_attention": True,
        "unmerge_at": "before_head",
        "restore": False,
        "matching": "bipartite",
        "size_aware": False,
        "reduce": "mean",
        "place": "before_mlp",
        "batch": "auto",
        "merge_to": None,
    }
    assert settings.replace(window=(3, 2)).record is None
    assert settings.replace(restore=True).record is None


@pytest.mark.parametrize("name", ["tuned", "counts", "calibrated"])
def test_results_stay_what_they_were(name):
    """Settings that came after these files and are on by default are off."""
    assert Settings.load(SAVED / f"{name}.json").restore is False


def test_what_tune_found_before_it_saved_what_it_did_not_search(tmp_path):
    saved = in_file("tuned")
    del saved["measured"]["others"]
    (tmp_path / "s.json").write_text(json.dumps({"algm_patch": saved}))
    settings = Settings.load(tmp_path / "s.json")
    assert settings == Settings.load(SAVED / "tuned.json")
    settings.save(tmp_path / "again.json")
    assert Settings.load(tmp_path / "again.json") == settings


def test_fixed_counts():
    """It keeps the rules that there were then."""
    expected = Settings(gbm_layers=[3], merge_to=[0.7, 14], compare="key", size_aware=False, restore=False)
    assert Settings.load(SAVED / "counts.json") == expected


def test_of_several_calibrated_thresholds_the_one_that_holds_is_read():
    settings, saved = Settings.load(SAVED / "calibrated.json"), in_file("calibrated")
    (own,) = (found for found in saved["calibrated"] if found["metric"] == saved["metric"] == "key")
    assert settings.calibrated_tau == own["value"]
    assert apply_algm(build("ViT", depth=3), settings=settings).algm.calibrated_tau == own["value"]


@pytest.mark.parametrize("name", ["tuned", "counts", "calibrated"])
def test_saved_again_they_are_the_same(name, tmp_path):
    settings = Settings.load(SAVED / f"{name}.json")
    settings.save(tmp_path / "new.json")
    assert Settings.load(tmp_path / "new.json") == settings
    written = json.loads((tmp_path / "new.json").read_text())["algm_patch"]
    assert not {"tokens", "metric", "unmerge", "measured", "taps"} & written.keys()


@pytest.mark.parametrize("name", ["tuned", "counts", "calibrated"])
def test_a_checkpoint_with_old_metadata_is_read(name, tmp_path):
    metadata = {"algm_patch": json.dumps(in_file(name))}
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors", metadata=metadata)
    assert Settings.load(tmp_path / "model.safetensors") == Settings.load(SAVED / f"{name}.json")


@pytest.mark.parametrize("others", [5, None, [["window"]], [3], {"window": 2}, [[["window"], 2]]])
def test_a_damaged_record_is_named(tmp_path, others):
    saved = in_file("tuned")
    saved["measured"]["others"] = others
    (tmp_path / "s.json").write_text(json.dumps({"algm_patch": saved}))
    with pytest.raises(ValueError, match=r"s\.json is damaged: others holds names and values of settings"):
        Settings.load(tmp_path / "s.json")


def test_agreement_is_of_pixels_now(tmp_path):
    saved = in_file("tuned")
    saved["measured"]["judge"] = "agreement"
    (tmp_path / "s.json").write_text(json.dumps({"algm_patch": saved}))
    record = Settings.load(tmp_path / "s.json").record
    assert record is not None
    assert record.names == ("pixels",)
    assert {tuple(trial.kept) for trial in record.trials} == {("pixels",)}


@pytest.mark.parametrize("kept", [None, "much", {"pixels": "much"}])
def test_a_trial_that_keeps_no_number_is_damaged(tmp_path, kept):
    saved = in_file("tuned")
    saved["measured"]["trials"][0]["kept"] = kept
    (tmp_path / "s.json").write_text(json.dumps({"algm_patch": saved}))
    with pytest.raises(ValueError, match=r"s\.json is damaged: what is kept is a number for each name"):
        Settings.load(tmp_path / "s.json")
