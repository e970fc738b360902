"""The parts of the GPU suite, on a CPU: methods of equal FLOPs, clocks, replayed plans, attention kernels."""

from __future__ import annotations

import time
import warnings

import pytest
import torch

from algm_patch.patching.weighted_attention import with_bias
from benchmarks.common.gflops import gflops
from benchmarks.common.patching import patched, twin
from benchmarks.common.stopwatch import Clock
from benchmarks.common.timing import calls_in_turns
from benchmarks.gpu.attention_inputs import SCALE, Case, Packed
from benchmarks.gpu.exactness import count_synchronisations, recorded_plans, replayed_plans
from benchmarks.gpu.methods import FIXED, PLAIN, THRESHOLDS, TOME, UNPATCHED, equal_method
from benchmarks.gpu.networks import NETWORKS, Flops, build, patches_left, photographs, tome_r

TEST = NETWORKS["test"]


@pytest.fixture
def network():
    """Yield an unpatched model and three images."""
    model = build(TEST, "cpu", torch.float32)
    with torch.inference_mode():
        yield model, photographs(model, TEST, 3)


# -- methods that cost equally many FLOPs


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "test"])
def test_flops_fall_as_published(name):
    network = NETWORKS[name]
    model = build(network, "meta", torch.float32)
    flops = Flops.of_model(model)
    full = flops.unpatched()
    algm = flops.algm(network, patches_left(model, network))
    tome = flops.tome(tome_r(model, network))
    assert algm / full == pytest.approx(network.published, abs=0.002)
    assert tome / full == pytest.approx(network.published, abs=0.005)


@pytest.mark.parametrize("name", [UNPATCHED, FIXED, PLAIN, TOME])
def test_flops_are_those_that_the_method_was_chosen_for(network, name):
    model, images = network
    flops = Flops.of_model(model)
    expected = {
        UNPATCHED: flops.unpatched(),
        TOME: flops.tome(tome_r(model, TEST)),
    }.get(name, flops.algm(TEST, patches_left(model, TEST)))
    with equal_method(name, model, TEST, images).patch(model):
        assert gflops(model, images) == pytest.approx(expected / 1e9)


def test_thresholds_merge_as_many_as_fixed_counts(network):
    model, images = network
    left = {}
    for name in (FIXED, THRESHOLDS):
        how = equal_method(name, model, TEST, images)
        with how.patch(model):
            model(images)
            left[name] = (model.algm.token_map.sizes > 0).sum(1)
    assert left[FIXED].tolist() == 3 * [1 + patches_left(model, TEST)[1]]
    assert left[THRESHOLDS].sum() == left[FIXED].sum()
    assert len(set(left[THRESHOLDS].tolist())) > 1


def test_a_twin_has_the_same_weights_and_is_patched_alone(network):
    model, images = network
    expected, own = model(images), twin(model)
    assert all(a is b for a, b in zip(model.parameters(), own.parameters(), strict=True))
    with patched(own, merge_to=0.6, gbm_layers=[3]):
        assert not torch.equal(own(images), expected)
        assert torch.equal(model(images), expected)


# -- inside a forward pass


def test_float64_merges_what_the_other_merged(network):
    model, images = network
    how = equal_method(FIXED, model, TEST, images)
    with how.patch(model), recorded_plans() as plans:
        model(images)
        labels = model.algm.token_map.labels
    others = torch.randn(images.shape, dtype=torch.float64)  # which would merge otherwise
    model.double()
    with how.patch(model):
        model(others)
        assert not torch.equal(model.algm.token_map.labels, labels)
        with replayed_plans(plans):
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
    clock = Clock(cuda=True)
    double = clock.timed("doubling", lambda x: 2 * x)
    assert (double(1), double(x=2)) == (2, 4)
    assert clock.seconds() == {"doubling": pytest.approx(0.007)}


def test_synchronisations_are_those_that_torch_warns_of(monkeypatch):
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def run():
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    assert count_synchronisations(run) == 2
    assert modes == ["warn", "default"]


# -- attention kernels


@pytest.mark.parametrize(("parts", "closer"), [(1, 0.01), (2, 1e-4)])
def test_a_bias_in_two_parts_loses_less(parts, closer):
    sizes = torch.arange(1, 40)
    head = torch.zeros(1, 1, len(sizes), 8, dtype=torch.bfloat16)
    query, key, _ = with_bias(head, head, head, sizes.log()[None] / SCALE, parts)
    carried = (query.double() * key.double()).sum(-1)[0, 0] * SCALE
    assert (carried - sizes.double().log()).abs().max() < closer


def test_packed_images_are_as_many_tokens():
    case = Case("some", batch=4, heads=2, length=40)
    packed = Packed.random(case, "cpu", torch.float32)
    assert len(set(packed.packing.lengths)) == 4
    assert (packed.sizes > 0).sum(1).tolist() == list(packed.packing.lengths)
    assert packed.packing.total == pytest.approx(160, abs=2)


def test_turns_go_through_all_runs():
    ran = []
    runs = {name: lambda name=name: ran.append(name) or time.sleep(0.06) for name in "abc"}
    spent = calls_in_turns(runs, rounds=3)
    assert {name: len(times) for name, times in spent.items()} == {"a": 3, "b": 3, "c": 3}
    assert [sorted(ran[i : i + 3]) for i in range(3, 12, 3)] == 3 * [["a", "b", "c"]]
