"""The rules by which the methods that ALGM is compared with choose what merges, against loops over single tokens."""

import itertools
import math
from typing import Any

import pytest
import torch

from benchmarks.evaluation import ailurus, local_clusters
from benchmarks.evaluation.mpm import mutual_leaders
from benchmarks.evaluation.pitome import energetic_leaders, energies
from benchmarks.evaluation.resolution import smaller

GRID = (4, 5)


def cosines(batch=2, length=11):
    unit = torch.nn.functional.normalize(torch.randn(batch, length, 3), dim=-1)
    return unit @ unit.mT


def energy(row, own, margin):
    """Return the energy of one token, of its cosines with all."""
    others = [c for other, c in enumerate(row.tolist()) if other != own]
    return sum(c if c >= margin else math.exp(c - margin) - 1 for c in others) / len(others)


@pytest.mark.parametrize("margin", [0.825, 0.3, 0])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_pitome_merges_the_tokens_of_highest_energy(margin, count):
    similarity = cosines()
    expected = []
    for matrix in similarity:
        energy_of = [energy(row, own, margin) for own, row in enumerate(matrix)]
        order = sorted(range(len(matrix)), key=lambda token: -energy_of[token])[: 2 * count]
        groups = {b: [b] for b in order[1::2]}
        for a in order[::2]:
            groups[max(order[1::2], key=lambda b: matrix[a, b].item())].append(a)
        leader = {token: min(group) for group in groups.values() for token in group}
        expected.append([leader.get(token, token) for token in range(len(matrix))])
        torch.testing.assert_close(energies(matrix[None], margin)[0], torch.tensor(energy_of))
    found = energetic_leaders(similarity, count, margin)
    assert found.tolist() == expected
    assert all(len(set(leaders)) == len(leaders) - count for leaders in expected)


def mutual_pairs(matrix):
    """Return (cosine, first, second) of the tokens that are each other's best, the most similar first."""
    best = [
        max((j for j in range(len(matrix)) if j != i), key=lambda j: matrix[i, j].item()) for i in range(len(matrix))
    ]
    return sorted(((matrix[i, j].item(), i, j) for i, j in enumerate(best) if best[j] == i and i < j), reverse=True)


def test_mpm_merges_every_mutual_pair_of_an_image():
    for similarity in cosines(batch=5):
        leaders, count = mutual_leaders(similarity[None])
        expected = list(range(len(similarity)))
        for _, first, second in mutual_pairs(similarity):
            expected[second] = first
        assert leaders[0].tolist() == expected
        assert count == len(mutual_pairs(similarity)) > 0


def test_mpm_merges_in_a_batch_as_many_as_the_image_with_the_fewest():
    similarity = cosines(batch=6)
    pairs = [mutual_pairs(matrix) for matrix in similarity]
    fewest = min(map(len, pairs))
    assert fewest < max(map(len, pairs))
    leaders, count = mutual_leaders(similarity)
    assert count == fewest
    for own, found in zip(pairs, leaders.tolist(), strict=True):
        assert {(leader, token) for token, leader in enumerate(found) if leader != token} == {
            (first, second) for _, first, second in own[:fewest]
        }


def test_ailurus_anchors_are_density_peaks(monkeypatch):
    monkeypatch.setattr(ailurus, "REACH", 6)
    monkeypatch.setattr(ailurus, "NEAREST", 2)
    x = torch.randn(2, 20, 4)
    ranks = ailurus.spatial_ranks(GRID)
    found = ailurus.nearest_anchors(ailurus.distances(x, ranks), ranks, 7)
    places = [divmod(token, GRID[1]) for token in range(20)]
    for image, groups in zip(x, found.tolist(), strict=True):
        order = [sorted(range(20), key=lambda other: math.dist(place, places[other])) for place in places]

        def distance(i, j, image=image, order=order):
            cosine = torch.cosine_similarity(image[i], image[j], dim=0).item()
            return (1 - ailurus.SPATIAL) * (2 - 2 * cosine) + ailurus.SPATIAL * order[i].index(j) / 6

        rho = [math.exp(-sum(sorted(distance(i, j) for j in order[i][1:7])[:2]) / 2) for i in range(20)]
        score = []
        for i in range(20):
            denser = [distance(i, j) for j in range(20) if rho[j] > rho[i]]
            score.append(rho[i] * (min(denser) if denser else max(distance(i, j) for j in range(20))))
        anchors = sorted(range(20), key=lambda i: -score[i])[:7]
        assert groups == [min(range(7), key=lambda n: distance(i, anchors[n])) for i in range(20)]


AROUND = {0: (0, 1, 2), 1: (0, 1, 2), 2: (1, 2, 3), 3: (1, 2, 3)}  # of four columns of centres, three


def plain_clusters(image, rounds, tau):
    """Return by place the 3x4 centres of tokens [6*8, D], and how much of all tokens belongs to each."""
    tokens = dict(zip(itertools.product(range(6), range(8)), image, strict=True))
    members = {(r, c): [tokens[2 * r + a, 2 * c + b] for a in (0, 1) for b in (0, 1)] for r in range(3) for c in AROUND}
    centres = {place: torch.stack(cell).mean(0) for place, cell in members.items()}
    around = {(i, j): [(r, c) for r in range(3) for c in AROUND[j // 2]] for i, j in tokens}
    scale = sum(min((tokens[t] - centres[c]).square().sum() for c in around[t]) for t in tokens) / len(tokens)
    for _ in range(rounds):
        given: dict[tuple[int, int], list[Any]] = {place: [] for place in centres}
        for t, token in tokens.items():
            logits = torch.stack([-(token - centres[c]).square().sum() / (tau * scale) for c in around[t]])
            for part, c in zip(logits.softmax(0), around[t], strict=True):
                given[c].append((part, token))
        sizes = {place: sum(part for part, _ in parts) for place, parts in given.items()}
        centres = {place: sum(part * token for part, token in parts) / sizes[place] for place, parts in given.items()}
    return centres, sizes


def test_elvit_clusters_are_soft_and_local():
    x = torch.randn(2, 48, 5)
    found = local_clusters.cluster(x, (6, 8), (3, 4), rounds=2, tau=0.3)
    for image, centres, sizes in zip(x, found.centres, found.sizes, strict=True):
        for expected, values in zip(plain_clusters(image, rounds=2, tau=0.3), (centres, sizes), strict=True):
            torch.testing.assert_close(values, torch.stack(list(expected.values())), rtol=1e-4, atol=1e-5)
        assert sizes.sum().item() == pytest.approx(48, rel=1e-5)


@pytest.mark.parametrize("nearest", [1, 3, 99])
def test_elvit_rebuilds_tokens_from_the_clusters_that_were_nearest(nearest):
    x, refined = torch.randn(2, 12, 5), torch.randn(2, 4, 5)
    clusters = local_clusters.Clusters(torch.randn(2, 4, 5), torch.ones(2, 4), torch.tensor([2.0, 0.5])[:, None, None])
    found = local_clusters.reconstruct(refined, x, clusters, nearest, tau=0.7)
    for n in range(2):
        scale = 0.7 * clusters.scale[n].item()
        for token, own in zip(x[n], found[n], strict=True):
            squares = [(token - centre).square().sum() for centre in clusters.centres[n]]
            near = sorted(range(4), key=squares.__getitem__)[:nearest]
            weights = torch.stack([-squares[c] / scale for c in near]).softmax(0)
            torch.testing.assert_close(own, weights @ refined[n, near], rtol=1e-4, atol=1e-5)


def test_a_grid_that_cells_do_not_divide_has_every_centre_near_some_token():
    for grid, cells in [((7, 5), (3, 2)), ((5, 5), (5, 5)), ((4, 9), (1, 7))]:
        around = local_clusters.centres_around(grid, cells)
        assert around.shape == (grid[0] * grid[1], min(3, cells[0]) * min(3, cells[1]))
        assert all(len(set(row)) == len(row) for row in around.tolist())
        assert set(around.flatten().tolist()) == set(range(cells[0] * cells[1]))


@pytest.mark.parametrize(
    ("side", "scale", "patch", "pixels"), [(448, 0.75, 14, 336), (364, 0.84, 14, 308), (32, 0.1, 16, 16)]
)
def test_smaller_images_have_whole_patches(side, scale, patch, pixels):
    assert smaller(side, scale, patch) == pixels
