"""The search: thresholds, predicted costs, shares by marginal cost, and the order of verification."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algm_patch import Settings
from algm_patch.settings.trial import Trial
from algm_patch.tuning.budget import Budget
from algm_patch.tuning.family import Candidate, Family
from algm_patch.tuning.front import verify_front
from algm_patch.tuning.judges import predict_dense
from algm_patch.tuning.look import Look, is_better, threshold
from algm_patch.tuning.opening import open_bench
from algm_patch.tuning.sensitivity import GROUPS, groups_of, marginal_costs, reweighted
from tests.support.models import build


@pytest.fixture
def bench():
    images = list(torch.rand(8, 3, 192, 160, generator=torch.Generator().manual_seed(0)).split(1))  # none are alike
    with torch.no_grad():
        yield open_bench(build("ViT", grid=(12, 10)), images, 0.9, predict_dense, None, "GFLOPs", Budget(600), None)


@given(st.lists(st.lists(st.floats(-3, 2, width=32), max_size=9), max_size=4), st.integers(1, 950))
def test_a_threshold_is_what_the_share_of_all_similarities_reaches(images, share):
    pooled = sorted((value for image in images for value in image), reverse=True)
    found = threshold([torch.tensor(image) for image in images], share)
    assert found == (min(max(pooled[len(pooled) * share // 1000], -1), 1) if pooled else 1)
    Settings(gbm_layers=[2], gbm_tau=[found])


@torch.no_grad()
def test_thresholds_merge_the_shares_that_a_look_merged(bench):
    """The shares are of all images together, up to what the thresholds of earlier layers change for later ones."""
    candidate = Candidate(200, ((1, 300), (3, 400)), "key")
    settings = bench.look(candidate).settings
    merged, proposals = [0, 0], [0, 0]
    with bench.handle.using(settings=settings):
        for image in bench.giving:
            for past in bench.run(image).passes:
                for index, (stage, layer) in enumerate([("CLAP", 0), ("GBM", 0)]):
                    plan = past.blocks[layer].plans[stage]
                    merged[index] += int((plan.similarity >= plan.tau).sum())
                    proposals[index] += int(plan.similarity.isfinite().sum())
    assert merged[0] / proposals[0] == pytest.approx(0.2, abs=1 / proposals[0])
    assert merged[1] / proposals[1] == pytest.approx(0.3, abs=0.03)


@torch.no_grad()
@pytest.mark.parametrize("family", [Family(0, 1, 4, "key"), Family(0.05, 2, 4, "token", "bipartite", ((2, 0.5),))])
def test_a_candidate_saves_what_was_predicted(bench, family):
    for saved in (0.12, 0.2):
        bench.look_at(family, saved)  # which shows how many proposals there are
        assert bench.look_at(family, saved).saved == pytest.approx(saved, abs=0.02)  # one proposal more, or equal ones
    assert bench.look_at(family, 0.9) is None
    assert bench.look_at(replace(family, clap=0.3), 0.1) is None  # CLAP alone saves more


def invented(costs, candidate, scale=1.0):
    """Return a look at a candidate of a model in which merges cost this divergence each, and save the same."""
    lost = sum(costs[layer] * share for layer, share in candidate.shares) * scale
    saved = sum(share for _, share in candidate.shares) / 10_000
    return Look(candidate, Settings(), torch.full((4,), lost, dtype=torch.float64), saved)


@given(st.integers(1, 6), st.floats(0.0, 0.5))
def test_a_layer_that_hardly_matters_merges_more(cheap, cost):
    costs = {layer: cost if layer == cheap else 1.0 for layer in range(1, 7)}
    family = Family(0, 1, 6, "key")
    at = invented(costs, family.at(0.2))
    found = marginal_costs(at, lambda candidate: invented(costs, candidate), gflops=10.0)
    assert found[(cheap,)] < min(value for group, value in found.items() if group != (cheap,))
    weights = dict(reweighted(family, found, 0.5).weights)
    assert weights[cheap] > 1 > max(weight for layer, weight in weights.items() if layer != cheap)
    twice = reweighted(reweighted(family, found, 0.5), found, 0.5)
    assert dict(twice.weights)[cheap] > weights[cheap]
    assert max(weights.values()) <= 1.5
    assert min(weights.values()) >= 1 / 1.5


def test_equal_marginal_costs_change_nothing():
    costs = dict.fromkeys(range(1, 7), 1.0)
    family = Family(0, 1, 6, "key")
    found = marginal_costs(invented(costs, family.at(0.2)), lambda each: invented(costs, each), gflops=10.0)
    assert dict(reweighted(family, found, 0.5).weights) == pytest.approx(dict.fromkeys(range(1, 7), 1.0))


@given(st.integers(0, 60))
def test_groups_hold_every_layer_once_and_are_few(depth):
    layers = range(1, depth + 1)
    groups = groups_of(layers)
    assert [layer for group in groups for layer in group] == list(layers)
    assert len(groups) == min(depth, GROUPS)


def test_better_is_less_divergence_at_equal_cost_by_more_than_scatter():
    candidate = Candidate(0, (), "key")

    def look(divergences, saved=0.4):
        return Look(candidate, Settings(), torch.tensor(divergences), saved)

    before = look([1.0, 2.0, 3.0])
    assert is_better(look([0.9, 1.9, 2.9]), before, slope=10)
    assert not is_better(look([0.1, 2.5, 3.2]), before, slope=10)  # one image decides
    assert not is_better(look([0.9, 1.8, 2.7], saved=0.38), before, slope=10)  # it saves less
    assert is_better(look([1.1, 2.2, 3.3], saved=0.42), before, slope=10)


@dataclass
class Made:
    """A bench of invented settings, which keep less the more they save."""

    keep: dict[str, float]
    trials: list[Trial] = field(default_factory=list)

    def look_at(self, family: Any, saved: float) -> Look:
        return Look(Candidate(0, (), "token"), Settings(tau=saved), torch.zeros(1), saved)

    def saved(self, trial: Trial) -> float:
        return 1 - trial.cost

    def verify(self, settings: Settings) -> Trial:
        saved: Any = settings.tau
        trial = Trial(1, saved, (), "adaptive", "token", {"pixels": 1 - 0.001 * 400**saved}, 1 - saved)
        self.trials.append(trial)
        return trial


@given(st.floats(0.5, 0.999))
def test_what_just_keeps_enough_is_found_and_everything_is_verified_once(keep):
    bench: Any = Made({"pixels": keep})
    levels = (0.2, 0.3, 0.4, 0.5, 0.6)
    family = Family(0, 1, 2, "token")
    verify_front(bench, [(bench.look_at(family, level), family) for level in levels])
    tried = [trial.tau for trial in bench.trials]
    assert len(set(tried)) == len(tried)
    assert set(levels) <= set(tried)
    kept = [trial.tau for trial in bench.trials if trial.keeps(bench.keep)]
    possible = [level for level in levels if 1 - 0.001 * 400**level >= keep]
    if possible:
        assert max(kept) >= max(possible)
    if possible and max(possible) < 0.6:
        assert 1 - 0.001 * 400 ** max(kept) < keep + 0.25 * (1 - keep)  # nothing much cheaper keeps enough
