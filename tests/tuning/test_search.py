"""The search: its candidates, and when it gives up."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from algm_patch import Settings
from algm_patch.settings.trial import Trial
from algm_patch.tuning.candidates import Candidate, beginnings, neighbours
from algm_patch.tuning.measure import Outcome
from algm_patch.tuning.search import search


@given(st.integers(1, 40), st.data())
def test_every_candidate_is_one_that_the_model_has(depth, data):
    layers = st.lists(st.integers(1, depth), unique=True).map(sorted).map(tuple)
    gbm_layers = data.draw(layers)
    clap_layer = data.draw(st.integers(1, min((depth, *gbm_layers))))
    at = Candidate(clap_layer, data.draw(st.integers(0, 19)), gbm_layers, data.draw(st.integers(1, 19)), "token")
    for candidate in (
        *beginnings(data.draw(st.integers(0, 5)), depth, ["token"]),
        *neighbours(at, depth, ["token", "key"]),
    ):
        Settings(clap_layer=candidate.clap_layer, gbm_layers=candidate.gbm_layers)
        assert all(1 <= layer <= depth for layer in (candidate.clap_layer, *candidate.gbm_layers))
        assert list(candidate.gbm_layers) == sorted(candidate.gbm_layers)
        assert 0 <= candidate.clap < 20


class Made:
    """A bench with invented losses: a fixed one for each twentieth of a stage."""

    depth, comparisons = 12, ("token", "key")

    def __init__(self, keep, clap, gbm):
        self.keep, self.losses, self.trials = keep, (clap, gbm), []

    def measure(self, candidate, best):
        merged = candidate.clap, candidate.gbm * len(candidate.gbm_layers)
        kept = 1 - sum(loss * share for loss, share in zip(self.losses, merged, strict=True))
        if kept >= self.keep:
            self.trials.append(candidate)
        cost = 1 / (1 + sum(merged))
        return Outcome(kept >= self.keep, [cost], Trial(1, 0.9, (), 0.9, "token", {"pixels": kept}, cost))


@given(st.floats(0.5, 0.999), st.floats(0, 0.01), st.floats(0, 0.01))
def test_whatever_keeps_enough_is_found(keep, clap, gbm):
    bench: Any = Made(keep, clap, gbm)
    search(bench)
    if 1 - gbm >= keep:  # GBM in one layer, of the least share
        assert bench.trials
