"""Matching is the method written out in loops (ALGORITHM: CLAP and GBM, step by step)."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from algm_patch.functional import TokenMap, clap, gbm
from tests.support.golden import assert_same_partition


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


def clap_in_loops(x, grid, tau, window, prefix):
    """Return the groups of positions that CLAP merges in one image."""
    rows, columns = range(0, grid[0], window[0]), range(0, grid[1], window[1])
    groups = [[i] for i in range(prefix)]
    loose = set(range(prefix, len(x)))
    for top in rows:
        for left in columns:
            members = [
                prefix + row * grid[1] + column
                for row in range(top, top + window[0])
                for column in range(left, left + window[1])
                if row < grid[0] and column < grid[1]
            ]
            if len(members) < window[0] * window[1]:
                continue
            pairs = [cosine(x[i], x[j]) for i in members for j in members if i != j]
            if sum(pairs) / len(pairs) >= tau:
                groups.append(members)
                loose -= set(members)
    return groups + [[i] for i in loose]


def gbm_in_loops(x, tau, layer, prefix):
    receivers = [i for i in range(prefix, len(x)) if i % 2 == 1]
    proposers = [i for i in range(prefix, len(x)) if i % 2 == 0]
    groups = {i: [i] for i in range(len(x))}
    if not receivers:
        return list(groups.values())
    best = {i: max((cosine(x[i], x[j]), -j) for j in receivers) for i in proposers}
    if tau == "adaptive":
        values = torch.tensor([similarity for similarity, _ in best.values()])
        tau = (values.mean() + values.std() / layer).item() if len(values) > 1 else 2.0
    for i, (similarity, j) in best.items():
        if similarity >= tau:
            groups[-j] += groups.pop(i)
    return list(groups.values())


def labels_of(groups, length):
    labels = torch.zeros(1, length, dtype=torch.long)
    for number, members in enumerate(groups):
        labels[0, members] = number
    return labels


SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 6))
# Thresholds that no cosine of random tokens hits to the last bit.
TAUS = st.sampled_from([-1.0, -0.2345678, 0.1234567, 0.4567891, 0.7891234, 2.0])


@given(SHAPES, TAUS, st.integers(1, 3), st.integers(2, 3), st.integers(0, 4), st.integers(0, 99))
def test_clap(grid, tau, high, wide, prefix, seed):
    x = torch.randn(prefix + grid[0] * grid[1], 3, generator=torch.Generator().manual_seed(seed))
    _, token_map = clap(x[None], grid, tau, window=(high, wide), num_prefix_tokens=prefix)
    groups = clap_in_loops(x, grid, tau, (high, wide), prefix)
    assert_same_partition(token_map.labels, labels_of(groups, len(x)))


@given(
    st.integers(0, 20), st.one_of(TAUS, st.just("adaptive")), st.integers(1, 20), st.integers(0, 4), st.integers(0, 99)
)
def test_gbm(patches, tau, layer, prefix, seed):
    x = torch.randn(prefix + patches, 3, generator=torch.Generator().manual_seed(seed))
    _, token_map = gbm(x[None], TokenMap.identity(1, len(x)), layer=layer, tau=tau, num_prefix_tokens=prefix)
    groups = gbm_in_loops(x, tau, layer, prefix)
    assert_same_partition(token_map.labels, labels_of(groups, len(x)))
