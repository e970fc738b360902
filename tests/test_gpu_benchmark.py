"""benchmarks/gpu.py on a CPU, with a tiny network: what it measures, what it says, and that it ends in time."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import attention_kernels
import gpu
import inside
import matched
import peers
from cost import gflops
from matched import FIXED, METHODS, NETWORKS, PLAIN, THRESHOLDS, TOME, UNPATCHED

TEST = NETWORKS["test"]
TRIAL = ["--device", "cpu", "--models", "test", "--dtype", "float32", "--rounds", "1", "--batches"]


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """What a run returns and prints, and the file it writes."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *text, **_: printed.extend(text))
        results = gpu.main([*TRIAL, "2", "--modes", "eager", "--results", str(folder)])
    return results, "\n".join(map(str, printed)), folder / "gpu_cpu.json"


@pytest.fixture
def network():
    """A model that is not patched, and three images."""
    model = matched.built(TEST, "cpu", torch.float32)
    with torch.inference_mode():
        yield model, matched.photographs(model, TEST, 3)


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
    assert {row["dtype"] for row in results["correctness"]} == set(gpu.DTYPES)
    for word in (*METHODS, *inside.PARTS, *gpu.DTYPES, "channels-last", "extra dimensions", "not measured"):
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
        assert sum(row[part] for part in inside.PARTS) == pytest.approx(1)
        assert all(row[part] > 0 for part in inside.PARTS)


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


def test_what_does_not_fit_the_time_is_named(tmp_path, capsys):
    options = [*TRIAL, "1", "2", "--modes", "eager", "compiled", "--results", str(tmp_path)]
    results = gpu.main([*options, "--minutes", "0"])
    assert results["left_out"] == [task.name for task in gpu.agenda(gpu.parse(options))]
    assert results["left_out"][0].startswith("test, eager, batch 2")
    assert {row["verdict"] for row in results["bars"]} == {"not measured"}
    printed = capsys.readouterr().out
    assert all(name in printed for name in results["left_out"])


def test_a_step_that_fails_does_not_end_the_run(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(inside, "shares", broken)
    monkeypatch.setattr(attention_kernels, "measured", broken)
    results = gpu.main([*TRIAL, "1", "--modes", "eager", "--results", str(tmp_path)])
    assert [row["error"] for row in results["errors"]] == 2 * ["RuntimeError: no such kernel and more"]
    assert results["correctness"]


def test_compiled_methods_say_what_eager_ones_do():
    options = gpu.parse([*TRIAL, "2", "--modes", "compiled", "--backend", "aot_eager"])
    with torch.no_grad():
        unpatched, fixed = gpu.speeds(options, "test", "compiled", 2, (UNPATCHED, FIXED))
    for row in (unpatched, fixed):
        assert row["distance_to_eager"] < 1e-5
        assert row["kept"] > 0
    torch.compiler.reset()


def test_a_method_that_fails_leaves_the_others(monkeypatch):
    method = gpu.method

    def broken(name, *rest):
        if name == TOME:
            raise ValueError("not this one")
        return method(name, *rest)

    monkeypatch.setattr(gpu, "method", broken)
    options = gpu.parse([*TRIAL, "1", "--modes", "eager"])
    with torch.no_grad():
        rows = gpu.speeds(options, "test", "eager", 1, (UNPATCHED, TOME, PLAIN))
    assert rows[1]["error"] == "ValueError: not this one"
    assert rows[0]["kept"] == 1
    assert rows[2]["kept"] > 0


def test_the_alarm_ends_what_would_never_end():
    before = signal.getsignal(signal.SIGALRM)

    def endless():
        while True:
            with contextlib.suppress(Exception):  # what runs may catch errors of its own
                time.sleep(1)

    with pytest.raises(gpu.OutOfTime), gpu.alarm(0.01):
        endless()
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize("options", ["--device cpu", "--device cpu --modes graphs", "--modes lazy", "--models none"])
def test_what_cannot_be_measured_is_refused(options, capsys):
    with pytest.raises(SystemExit):
        gpu.main(options.split())
    assert "error: " in capsys.readouterr().err


def test_the_most_important_comes_first_and_nothing_twice():
    options = gpu.parse([*TRIAL, "1", "8", "32", "--modes", "eager", "compiled"])
    names = [task.name for task in gpu.agenda(options)]
    assert len(set(names)) == len(names)
    assert names[0] == f"test, eager, batch 32: {'; '.join(METHODS)}"
    every = {(mode, batch) for mode in ("eager", "compiled") for batch in (1, 8, 32)}
    assert {(mode, batch) for mode, batch in every if any(f"{mode}, batch {batch}:" in name for name in names)} == every


# -- bars


def verdicts(**tables):
    empty = {name: [] for name in gpu.TABLES}
    return {row["bar"]: row["verdict"] for row in gpu.bars(empty | tables)}


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
    bar = "what proportional attention costs of the patched forward pass: at most 0.05"
    assert verdicts(speed=rows)[bar] == verdict


@pytest.mark.parametrize(("method", "number", "verdict"), [(FIXED, 0, "reached"), (FIXED, 1, "not reached")])
def test_fixed_counts_must_not_wait(method, number, verdict):
    rows = [{"model": "ViT-S", "batch": 1, "method": method, "synchronisations": number}]
    assert verdicts(synchronisations=rows)["host synchronisations with fixed counts: none"] == verdict


# -- methods that cost equally many FLOPs


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "test"])
def test_flops_fall_as_published(name):
    network = NETWORKS[name]
    model = matched.built(network, "meta", torch.float32)
    flops = matched.Flops.of(model)
    full = flops.unpatched()
    algm = flops.algm(network, matched.algm_kept(model, network))
    tome = flops.tome(matched.tome_r(model, network))
    assert algm / full == pytest.approx(network.published, abs=0.002)
    assert tome / full == pytest.approx(network.published, abs=0.005)


@pytest.mark.parametrize("name", [UNPATCHED, FIXED, PLAIN, TOME])
def test_flops_are_those_that_the_method_was_chosen_for(network, name):
    model, images = network
    flops = matched.Flops.of(model)
    expected = {
        UNPATCHED: flops.unpatched(),
        TOME: flops.tome(matched.tome_r(model, TEST)),
    }.get(name, flops.algm(TEST, matched.algm_kept(model, TEST)))
    with matched.method(name, model, TEST, images).patch(model):
        assert gflops(model, images) == pytest.approx(3 * expected / 1e9)


def test_thresholds_merge_as_many_as_fixed_counts(network):
    model, images = network
    left = {}
    for name in (FIXED, THRESHOLDS):
        how = matched.method(name, model, TEST, images)
        with how.patch(model):
            model(images)
            left[name] = (model.algm.token_map.sizes > 0).sum(1)
    assert left[FIXED].tolist() == 3 * [1 + matched.algm_kept(model, TEST)[1]]
    assert left[THRESHOLDS].sum() == left[FIXED].sum()
    assert len(set(left[THRESHOLDS].tolist())) > 1


def test_a_twin_has_the_same_weights_and_is_patched_alone(network):
    model, images = network
    expected, own = model(images), matched.twin(model)
    assert all(a is b for a, b in zip(model.parameters(), own.parameters(), strict=True))
    with peers.algm(own, merge_to=0.6, gbm_layers=[3]):
        assert not torch.equal(own(images), expected)
        assert torch.equal(model(images), expected)


# -- inside a forward pass


def test_float64_merges_what_the_other_merged(network):
    model, images = network
    how = matched.method(FIXED, model, TEST, images)
    with how.patch(model), inside.recorded() as plans:
        model(images)
        labels = model.algm.token_map.labels
    others = torch.randn(images.shape, dtype=torch.float64)  # which would merge otherwise
    model.double()
    with how.patch(model):
        model(others)
        assert not torch.equal(model.algm.token_map.labels, labels)
        with inside.replayed(plans):
            model(others)
        assert torch.equal(model.algm.token_map.labels, labels)


def test_a_clock_of_cuda_reads_events(monkeypatch):
    class Event:
        times = iter([1.0, 3.0, 10.0, 15.0])

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.time = next(self.times)

        def elapsed_time(self, end):
            return end.time - self.time

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    clock = inside.Clock(cuda=True)
    double = clock.timed("doubling", lambda x: 2 * x)
    assert (double(1), double(x=2)) == (2, 4)
    assert clock.seconds() == {"doubling": pytest.approx(0.007)}


def test_synchronisations_are_those_that_torch_warns_of(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def run():
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    assert inside.synchronisations(run) == 2
    assert modes == ["warn", "default"]


# -- attention kernels


@pytest.mark.parametrize(("parts", "closer"), [(1, 0.01), (2, 1e-4)])
def test_a_bias_in_two_parts_loses_less(parts, closer):
    sizes = torch.arange(1, 40)
    carried = attention_kernels.key_dimensions(sizes, torch.bfloat16, parts).double().sum(-1) * attention_kernels.SCALE
    assert (carried - sizes.double().log()).abs().max() < closer


def test_packed_images_are_as_many_tokens():
    case = attention_kernels.Case("some", batch=4, heads=2, length=40)
    packed = attention_kernels.Packed.random(case, "cpu", torch.float32)
    assert len(set(packed.packing.lengths)) == 4
    assert (packed.sizes > 0).sum(1).tolist() == list(packed.packing.lengths)
    assert packed.packing.total == pytest.approx(160, abs=2)


def test_turns_go_through_all_runs():
    ran = []
    runs = {name: lambda name=name: ran.append(name) or time.sleep(0.06) for name in "abc"}
    spent = attention_kernels.in_turns(runs, rounds=3)
    assert {name: len(times) for name, times in spent.items()} == {"a": 3, "b": 3, "c": 3}
    assert [sorted(ran[i : i + 3]) for i in range(3, 12, 3)] == 3 * [["a", "b", "c"]]
