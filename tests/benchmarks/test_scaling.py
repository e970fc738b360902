"""Scaling reports every combination, measured or left out; and what it claims of matching's memory."""

import csv
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from algm_patch.core import nearest
from algm_patch.core.plan import plan_clap
from algm_patch.functional import TokenMap
from benchmarks.common.memory import peak_memory
from benchmarks.cost import scaling, scaling_report, stages
from benchmarks.cost.scaling_figure import draw

TINY = ["--model", "test_vit", "--rounds", "1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "new" / "scaling"
    measured, left_out = scaling.main([*TINY, "--tokens", "36", "16", "--batches", "1", "2", "--out", str(out)])
    return measured, left_out, out


def test_every_combination_is_measured_by_rising_tokens(run):
    measured, left_out, _ = run
    assert [(found.tokens, found.batch) for found in measured] == [(16, 1), (36, 1), (16, 2), (36, 2)]
    assert left_out == []
    for found in measured:
        assert found.whole
        assert list(found.costs) == [stages.FORWARD, *stages.STAGES]
        assert all(cost.seconds > 0 and cost.memory > 0 for cost in found.costs.values())


def test_shares_are_of_the_forward_pass_and_add_up(run):
    for found in run[0]:
        forward = found.costs["forward"]
        assert forward.share == 1
        for cost in found.costs.values():  # of one round
            assert cost.share == pytest.approx(cost.seconds / forward.seconds)
        others = ["CLAP merge", "GBM merge", "unmerge"]
        assert found.share(stages.MATCHING) + found.share(others) == pytest.approx(found.share(stages.STAGES))


def test_results_are_written_as_a_table_and_a_picture(run):
    measured, _, out = run
    with out.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = [(found, stage) for found in measured for stage in found.costs]
    for row, (found, stage) in zip(rows, expected, strict=True):
        assert (int(row["tokens"]), int(row["batch"]), row["stage"]) == (found.tokens, found.batch, stage)
        cost = found.costs[stage]
        for name, value in (("milliseconds", 1e3 * cost.seconds), ("share", cost.share)):
            assert float(row[name]) == pytest.approx(value, rel=1e-3)
        assert float(row["bytes_per_token"]) == pytest.approx(cost.memory, abs=1)
        assert row["forward_measured_on"] == "network"
    assert np.asarray(Image.open(out.with_suffix(".png")).convert("L")).std() > 10


def test_what_is_over_the_budget_is_left_out_and_said_to_be(monkeypatch, tmp_path, capsys):
    """A false clock says that a block takes as many seconds as the images have tokens."""
    blocks = []

    def clock(function, x):
        if x.dim() == 4:
            return len(x) * x.shape[2] * x.shape[3] / 16**2 * 6
        if not isinstance(function, torch.nn.Module):
            return 0.5
        blocks.append(x.shape)
        return len(x) * (x.shape[1] - 1)

    monkeypatch.setattr(stages, "seconds", clock)
    monkeypatch.setattr(stages, "block_work", lambda model, tokens, batch: batch * tokens)
    options = [
        "--tokens",
        "16",
        "36",
        "--batches",
        "1",
        "2",
        "4",
        "--budget",
        str(3 * 64),
        "--out",
        str(tmp_path / "s"),
    ]
    measured, left_out = scaling.main([*TINY, *options])
    assert [(found.tokens, found.batch, found.whole) for found in measured] == [
        (16, 1, False),
        (36, 1, False),
        (16, 2, False),
        (16, 4, False),
    ]
    assert left_out == [stages.LeftOut(36, 2, 3 * 72.0), stages.LeftOut(36, 4, 3 * 144.0)]
    for found in measured:  # one block, times six
        assert found.costs["forward"].seconds == 6 * found.tokens * found.batch
        assert found.costs["unmerge"].share == 0.5 / found.costs["forward"].seconds
    assert (4, 37, 64) not in blocks
    printed = capsys.readouterr().out
    assert "     36     2    left out: would take about 216 s" in printed
    assert printed.count("*") == len(measured)
    with (tmp_path / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["forward_measured_on"] for row in rows} == {"one block", ""}
    gone = [(row["tokens"], row["batch"]) for row in rows if row["stage"] == "left out"]
    assert gone == [("36", "2"), ("36", "4")]
    title = draw(measured, left_out, "title").get_suptitle()
    assert "36 tokens, batch 2; 36 tokens, batch 4" in title

    measured, left_out = scaling.main([*TINY, *options, "--budget", "0.1"])
    assert (len(measured), len(left_out)) == (0, 6)
    assert "Nothing fits the budget" in capsys.readouterr().out


@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 3), st.integers(1, 3))
def test_stages_merge_half_of_the_candidates_and_give_all_tokens_back(high, wide, prefix, batch):
    x = torch.randn(batch, prefix + high * wide, 5)
    done: dict[str, Any] = {
        name: function(given) for name, (function, given) in stages.stages(x, (high, wide), prefix).items()
    }
    assert list(done) == list(stages.STAGES)
    windows = batch * (high // 2) * (wide // 2)
    plan = done["CLAP matching"]
    assert (plan.step.sizes == 4).sum() == windows - (windows - 1) // 2
    assert torch.equal(done["CLAP merge"], plan(x))
    token_map = done["GBM matching"]
    proposals = batch * len(range(prefix + prefix % 2, x.shape[1], 2))
    assert batch * x.shape[1] - (token_map.sizes > 0).sum() == proposals - (proposals - 1) // 2
    torch.testing.assert_close(done["GBM merge"], token_map.pack(token_map.merge(x)))
    assert torch.equal(done["unmerge"], token_map.unmerge(token_map.unpack(done["GBM merge"])))
    assert done["unmerge"].shape == x.shape


def test_maps_of_a_new_forward_pass_have_computed_nothing():
    x = torch.randn(2, 36, 5).cumsum(1)
    plan = plan_clap(x, (6, 6), 0.9, (2, 2), 0, "image")
    assert plan.step.packing is not None
    plan(x)
    again = stages.fresh(plan.step)
    new = TokenMap(again.labels, again.sizes, again.packing)
    assert set(vars(again)) == set(vars(new)) < set(vars(plan.step))
    assert set(vars(again.packing)) < set(vars(plan.step.packing))
    assert torch.equal(again.labels, plan.step.labels)


CHUNK = 16 * 2**10


def memory(side, batch, chunk):
    """Return the bytes at the peak of each stage."""
    x = torch.randn(batch, side * side, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "CHUNK_BYTES", chunk)
        return {name: peak_memory(*call) for name, call in stages.stages(x, (side, side), 0).items()}


@given(st.integers(1, 5), st.integers(1, 3))
def test_memory_is_linear_in_the_tokens_but_for_one_chunk(times, batch):
    few, many = memory(8, batch, CHUNK), memory(8 * times, batch, CHUNK)
    for stage in stages.STAGES:
        chunk = CHUNK if stage == "GBM matching" else 0
        assert many[stage] <= 1.05 * few[stage] * times**2 + chunk  # how many merge is rounded


def test_without_chunks_memory_is_not_linear():
    few, many = (memory(side, 1, 2**40)["GBM matching"] for side in (8, 40))
    assert many > 2 * (few * 25 + CHUNK)


def measured(tokens, share, memory, batch=1):
    costs = {stage: stages.Cost(share, share, memory) for stage in stages.STAGES}
    return stages.Measured(tokens, batch, True, {"forward": stages.Cost(1.0, 1.0, memory), **costs})


def test_the_bars_hold_or_are_missed_at_the_worst_combination():
    chunk = nearest.CHUNK_BYTES
    few, many = measured(2**8, 0.02, 100.0), measured(2**14, 0.01, 100 + chunk / 2**14)
    reach, time, memory = scaling_report.verdicts([few, many])
    assert reach == "up to 16384 tokens"
    assert "4.00% of the unpatched forward pass (256 tokens, batch 1); less than 5%: held" in time
    assert "at most 1.00 ×" in memory
    assert memory.endswith("(16384 tokens, batch 1); at most 1: held")
    _, time, memory = scaling_report.verdicts(
        [few, measured(2**14, 0.025, 101 + chunk / 2**14), measured(2**8, 0.0, 1e6, 8)]
    )
    assert "5.00% of the unpatched forward pass (16384 tokens, batch 1); less than 5%: missed" in time
    assert memory.endswith("(16384 tokens, batch 1); at most 1: missed")


def test_options_that_do_not_fit_are_refused_with_what_would(capsys):
    with pytest.raises(SystemExit):
        scaling.main(["--tokens", "300"])
    assert "300 tokens are no square grid: give 289 or 324" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        scaling.main(["--tokens", "1"])
    assert "give 4 or 9" in capsys.readouterr().err
    for name in ("resnet18", "vit_of_nobody", "eva02_tiny_patch14_224"):
        with pytest.raises(SystemExit, match=f"error: {name}.* Give a plain vision transformer of timm's"):
            scaling.main(["--model", name])
