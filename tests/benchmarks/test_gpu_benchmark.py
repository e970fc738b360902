"""The GPU suite on a CPU, with a tiny network: its measurements, its verdicts, and that it ends in time."""

from __future__ import annotations

import contextlib
import json
import math
import re
import signal
import time
from typing import Any

import pytest
import torch

from benchmarks.common.arguments import DTYPES
from benchmarks.common.stopwatch import PARTS
from benchmarks.gpu import attention, bars, lines, show, suite, tables
from benchmarks.gpu.agenda import agenda
from benchmarks.gpu.methods import FIXED, METHODS, PLAIN, THRESHOLDS, TOME, UNPATCHED, equal_method
from benchmarks.gpu.networks import NETWORKS

TEST = NETWORKS["test"]
TRIAL = ["--device", "cpu", "--models", "test", "--dtype", "float32", "--rounds", "1", "--batches"]


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """Return the results of a run, its printed lines, and the file it writes."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *text, **_: printed.extend(text))
        results = suite.main([*TRIAL, "2", "--modes", "eager", "--results", str(folder)])
    return results, "\n".join(map(str, printed)), folder / "gpu_cpu.json"


# -- the command


def test_every_table_is_filled_printed_and_read_back(trial):
    results, printed, file = trial
    assert json.loads(file.read_text()) == results
    assert results["card"] == "CPU"
    assert results["torch"] == torch.__version__
    assert not results["errors"]
    assert not results["left_out"]
    assert [row["method"] for row in results["speed"]] == list(METHODS)
    assert {row["method"] for row in results["split"]} == {FIXED, THRESHOLDS}
    assert {row["dtype"] for row in results["correctness"]} == set(DTYPES)
    for word in (*METHODS, *PARTS, *DTYPES, "channels-last", "extra dimensions", "not measured"):
        assert word in printed


def test_speed_is_against_the_unpatched_model_and_the_ideal(trial):
    unpatched, *others = trial[0]["speed"]
    assert unpatched["faster"] == unpatched["ideal"] == unpatched["kept"] == 1
    for row in others:
        assert row["ideal"] == pytest.approx(1 / TEST.published, rel=0.05)
        assert row["kept"] == pytest.approx(row["faster"] / row["ideal"])
        assert 0 < row["memory"] < unpatched["memory"] * 1.5


def test_parts_make_up_the_forward_pass(trial):
    for row in trial[0]["split"]:
        assert sum(row[part] for part in PARTS) == pytest.approx(1)
        assert all(row[part] > 0 for part in PARTS)


def test_merging_is_as_exact_as_the_model(trial):
    for row in trial[0]["correctness"]:
        assert 0 < row["patched"] < 2 * row["unpatched"]
        assert row["unpatched"] < {"float32": 1e-5, "float16": 1e-2, "bfloat16": 0.1}[row["dtype"]]
    assert all(row["distance"] < 1e-5 for row in trial[0]["conditions"])


def test_attention_with_bias_is_exact_or_the_reason_is_told(trial):
    rows = {row["candidate"]: row for row in trial[0]["kernels"]}
    for name in (
        "bias",
        "extra dimensions, 2 in use",
        "packed: one image after the other",
        "packed: padded, with bias",
    ):
        assert rows[name]["difference"] < 1e-5
        assert rows[name]["ratio"] > 0
    refused = [row for row in rows.values() if "error" in row]
    assert refused
    assert all("Error" in row["error"] and "ratio" not in row and len(row["error"]) <= 160 for row in refused)


def test_an_earlier_run_is_shown_as_it_was_printed(trial, capsys):
    _, printed, file = trial
    show.main([str(file)])
    shown = capsys.readouterr().out.splitlines()
    rows = [line for line in printed.splitlines() if line.startswith("  ")]
    assert len(rows) > len(METHODS)
    assert set(rows) <= set(shown)


def test_the_figures_of_the_page_about_gpus_are_those_of_the_committed_runs(capsys):
    show.main([])
    shown = capsys.readouterr().out
    page = (suite.RESULTS.parents[1] / "docs" / "gpu.md").read_text()
    claimed = page.split("## Beside what others have published")[1]
    pairs = re.findall(r"(\d{4}) against (\d{4}), (\d\.\d\d ×)", claimed)
    assert len(pairs) == 2
    assert all(f"{after} images a second against {before}, {gain}" in shown for after, before, gain in pairs)
    found = [set(re.findall(r"kept (\d\.\d\d)", run.split("Bars")[0])) for run in shown.split("card ")[1:]]
    kept = re.findall(r"ViT-\w+ ≥ 0\.\d+ \| (\d\.\d\d): no \| (\d\.\d\d): no", page)
    assert len(kept) == 4
    h100, h200 = found
    assert all(new in h200 and old in h100 for new, old in kept)


def test_what_does_not_fit_the_time_is_named(tmp_path, capsys):
    options = [*TRIAL, "1", "2", "--modes", "eager", "compiled", "--results", str(tmp_path)]
    results = suite.main([*options, "--minutes", "0"])
    assert results["left_out"] == [task.name for task in agenda(suite.parse(options))]
    assert results["left_out"][0].startswith("test, eager, batch 2")
    assert {row["verdict"] for row in results["bars"]} == {"not measured"}
    printed = capsys.readouterr().out
    assert all(name in printed for name in results["left_out"])


def test_a_step_that_fails_does_not_end_the_run(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(tables, "time_shares", broken)
    monkeypatch.setattr(attention, "measure", broken)
    results = suite.main([*TRIAL, "1", "--modes", "eager", "--results", str(tmp_path)])
    assert [row["error"] for row in results["errors"]] == 2 * ["RuntimeError: no such kernel and more"]
    assert results["correctness"]


def test_compiled_methods_say_what_eager_ones_do():
    options = suite.parse([*TRIAL, "2", "--modes", "compiled", "--backend", "aot_eager"])
    with torch.no_grad():
        unpatched, fixed = tables.speed_rows(options, "test", "compiled", 2, (UNPATCHED, FIXED))
    for row in (unpatched, fixed):
        assert row["distance_to_eager"] < 1e-5
        assert row["kept"] > 0
    torch.compiler.reset()


def test_a_method_that_fails_leaves_the_others(monkeypatch):
    def broken(name, *rest):
        if name == TOME:
            raise ValueError("not this one")
        return equal_method(name, *rest)

    monkeypatch.setattr(tables, "equal_method", broken)
    options = suite.parse([*TRIAL, "1", "--modes", "eager"])
    with torch.no_grad():
        rows = tables.speed_rows(options, "test", "eager", 1, (UNPATCHED, TOME, PLAIN))
    assert rows[1]["error"] == "ValueError: not this one"
    assert rows[0]["kept"] == 1
    assert rows[2]["kept"] > 0


def test_the_alarm_ends_what_would_never_end():
    before = signal.getsignal(signal.SIGALRM)

    def endless():
        while True:
            with contextlib.suppress(Exception):  # what runs may catch errors of its own
                time.sleep(1)

    with pytest.raises(suite.OutOfTime), suite.alarm(0.01):
        endless()
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize("options", ["--device cpu", "--device cpu --modes graphs", "--modes lazy", "--models none"])
def test_what_cannot_be_measured_is_refused(options, capsys):
    with pytest.raises(SystemExit):
        suite.main(options.split())
    assert "error: " in capsys.readouterr().err


def test_the_most_important_comes_first_and_nothing_twice():
    options = suite.parse([*TRIAL, "1", "8", "32", "--modes", "eager", "compiled"])
    names = [task.name for task in agenda(options)]
    assert len(set(names)) == len(names)
    assert names[0] == f"test, eager, batch 32: {'; '.join(METHODS)}"
    every = {(mode, batch) for mode in ("eager", "compiled") for batch in (1, 8, 32)}
    assert {(mode, batch) for mode, batch in every if any(f"{mode}, batch {batch}:" in name for name in names)} == every


# -- bars


def verdicts(**tables):
    empty: dict[str, list[Any]] = {name: [] for name in lines.TABLES}
    return {row["bar"]: row["verdict"] for row in bars.bars(empty | tables)}


def speed(method, mode="eager", batch=32, model="ViT-L", **figures):
    return {"model": model, "mode": mode, "batch": batch, "method": method, **figures}


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([speed(FIXED, kept=0.95, faster=1.4)], "reached"),
        ([speed(FIXED, kept=0.94, faster=1.4)], "not reached"),
        ([speed(FIXED, kept=0.99, faster=1.4), speed(FIXED, "graphs", error="no")], "not reached"),
        ([speed(FIXED, kept=math.nan, faster=math.nan)], "not reached"),
        ([speed(FIXED, batch=8, kept=0.99, faster=1.4), speed(TOME, kept=0.5, faster=0.7)], "not measured"),
    ],
)
def test_speed_up_kept_must_be_so_in_every_mode(rows, verdict):
    found = verdicts(speed=rows)
    assert found["speed-up kept at batch 32, ViT-L: at least 0.95"] == verdict
    assert found["speed-up kept at batch 32, ViT-S: at least 0.9"] == "not measured"


@pytest.mark.parametrize(("seconds", "verdict"), [(1.049, "reached"), (1.06, "not reached")])
def test_proportional_attention_is_against_plain(seconds, verdict):
    rows = [speed(FIXED, faster=1.4 / seconds, kept=1.0), speed(PLAIN, faster=1.4, kept=1.0)]
    bar = "cost of proportional attention in the patched forward pass: at most 0.05"
    assert verdicts(speed=rows)[bar] == verdict


@pytest.mark.parametrize(("method", "number", "verdict"), [(FIXED, 0, "reached"), (FIXED, 1, "not reached")])
def test_fixed_counts_must_not_wait(method, number, verdict):
    rows = [{"model": "ViT-S", "batch": 1, "method": method, "synchronisations": number}]
    assert verdicts(synchronisations=rows)["host synchronisations with fixed counts: none"] == verdict
