"""The rules by which tokens propose to each other, against loops over all pairs."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity

from algm_patch.core import nearest
from algm_patch.core.matching import best_matches
from algm_patch.core.mutual import FOLDED, folded, mutual_matches
from algm_patch.core.plan import plan_gbm
from algm_patch.core.rule import Rule


@st.composite
def sequences(draw):
    """Draw tokens [B, P+N, D], their sizes, and P."""
    batch, prefix = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    length = prefix + draw(st.integers(0, 14))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    x = torch.randn(batch, length, draw(st.sampled_from([3, FOLDED, 100, 130])), generator=generator)
    return x, torch.randint(1, 9, (batch, length), generator=generator).float(), prefix


def wards(cosine, size, other):
    """Return a similarity by Ward's distance: of two tokens of one size s, sqrt(s) times as far."""
    return 1 - (1 - cosine) * (2 * size * other / (size + other)) ** 0.5


@given(sequences(), st.booleans())
def test_pairs_are_each_others_nearest(case, size_aware):
    x, sizes, prefix = case
    similarity, proposer, partner = mutual_matches(x, prefix, None, sizes if size_aware else None)
    assert proposer.tolist() == list(range(prefix, x.shape[1]))
    for image in range(len(x)):
        vectors = folded(x[image].double())
        between = cosine_similarity(vectors[:, None], vectors[None], dim=-1)
        if size_aware:
            between = wards(between, sizes[image][:, None], sizes[image][None])
        between.fill_diagonal_(-torch.inf)
        between[:, :prefix] = -torch.inf
        nearest = between.argmax(1).tolist() if x.shape[1] else []
        for token in range(prefix, x.shape[1]):
            found = similarity[image, token - prefix].item()
            if nearest[nearest[token]] == token < nearest[token]:
                assert partner[image, token - prefix] == nearest[token]
                assert abs(found - between[token, nearest[token]]) < 1e-4
            else:
                assert found == -torch.inf


@given(sequences())
def test_size_aware_proposals_are_by_wards_distance(case):
    x, sizes, prefix = case
    similarity, proposer, partner = best_matches(x, prefix, None, sizes)
    for image in range(len(x)):
        for number, token in enumerate(proposer.tolist()):
            others = [other for other in range(prefix, x.shape[1]) if other % 2]
            by_ward = [
                wards(cosine_similarity(x[image, token], x[image, other], dim=0), *sizes[image, [token, other]])
                for other in others
            ]
            assert abs(similarity[image, number] - max(by_ward)) < 1e-4
            assert abs(by_ward[others.index(int(partner[image, number]))] - max(by_ward)) < 1e-4


@given(sequences(), st.booleans())
def test_tokens_of_one_size_keep_their_order_and_those_of_size_one_their_cosine(case, mutual):
    x, sizes, prefix = case
    plain, *_, partner = Rule(mutual).match(x, prefix, sizes, None)
    ones = Rule(mutual, size_aware=True).match(x, prefix, torch.ones_like(sizes), None)
    torch.testing.assert_close(ones[0], plain)
    fours = Rule(mutual, size_aware=True).match(x, prefix, torch.full_like(sizes, 4), None)
    torch.testing.assert_close(fours[0], torch.where(plain.isinf(), plain, 1 - 2 * (1 - plain)))
    if not mutual:
        assert torch.equal(fours[2], partner)


def test_a_flat_area_pairs_up():
    """All tokens are equal, and rounding must not let all choose the same one."""
    plan = plan_gbm(torch.ones(1, 1 + 49, 100), torch.ones(1, 50), 0.9, 1, 1, "image", rule=Rule(mutual=True))
    assert plan.step.sizes.tolist() == [[1.0] + 24 * [2.0] + [1.0]]


def test_similarities_of_all_pairs_are_held_in_chunks(monkeypatch):
    x, sizes = torch.randn(2, 60, 80), torch.randint(1, 5, (2, 60)).float()
    whole = Rule(mutual=True, size_aware=True).match(x, 1, sizes, None)
    monkeypatch.setattr(nearest, "CHUNK_BYTES", 7 * 2 * 59 * 4)
    chunked = Rule(mutual=True, size_aware=True).match(x, 1, sizes, None)
    torch.testing.assert_close(chunked[0], whole[0])
    assert torch.equal(chunked[2], whole[2])


def test_keys_of_heads_fold_to_their_mean():
    keys = torch.randn(2, 9, 3, FOLDED)
    torch.testing.assert_close(folded(keys.flatten(2)), 3 * keys.mean(2))
    assert folded(keys[..., 0, :5]).shape == (2, 9, 5)
    assert folded(torch.randn(2, 9, 130)).shape == (2, 9, FOLDED)
