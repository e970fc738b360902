"""Matching holds a bounded number of similarities at once: eager, compiled, and in the operator that compilers call."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from algm_patch.core import nearest
from algm_patch.core.matching import best_matches
from algm_patch.core.mutual import mutual_matches
from tests.support.compiling import IN_ONE_GRAPH
from tests.support.largest import Largest

BATCH, TOKENS, WIDTH = 3, 202, 8
MATCHERS = pytest.mark.parametrize("matches", [best_matches, mutual_matches])


def tokens(batch=BATCH, length=TOKENS):
    torch.manual_seed(0)
    return torch.randn(batch, length, WIDTH), torch.randint(1, 5, (batch, length)).float()


def largest_in(graph):
    """Return the bytes of the largest tensor that a graph of fixed shapes makes."""
    found = []
    for node in graph.graph.nodes:
        values = node.meta.get("example_value")
        for value in values if isinstance(values, tuple | list) else [values]:
            if isinstance(value, torch.Tensor):
                found.append(value.untyped_storage().nbytes())
    return max(found)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


@IN_ONE_GRAPH
@MATCHERS
@pytest.mark.parametrize(("size_aware", "padded"), [(False, False), (True, True)], ids=["", "sizes and padding"])
@pytest.mark.parametrize("dynamic", [False, True])
@torch.no_grad()
def test_a_graph_holds_few_similarities_and_has_the_matches_of_eager(matches, size_aware, padded, dynamic, monkeypatch):
    linear = 4 * BATCH * TOKENS * WIDTH
    monkeypatch.setattr(nearest, "CHUNK_BYTES", linear)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(matches, fullgraph=True, dynamic=dynamic, backend=counter)
    for length in (TOKENS, TOKENS - 50):
        x, sizes = tokens(length=length)
        counts = torch.tensor([length, length - 7, length - 40]) if padded else None
        arguments = x, 1, counts, sizes if size_aware else None
        expected, found = matches(*arguments), compiled(*arguments)
        torch.testing.assert_close(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert torch.equal(found[2], expected[2])
    assert counter.frame_count == (1 if dynamic else 2)
    if not dynamic:
        assert largest_in(counter.graphs[0]) <= linear < 4 * BATCH * (TOKENS // 2) ** 2
    assert any("algm_patch.nearest" in str(node.target) for node in counter.graphs[0].graph.nodes)


@MATCHERS
@torch.no_grad()
def test_the_operator_holds_one_chunk(matches, monkeypatch):
    x, sizes = tokens()
    linear = 4 * BATCH * TOKENS * WIDTH
    monkeypatch.setattr(nearest, "CHUNK_BYTES", linear)
    with Largest() as largest:
        if matches is best_matches:
            nearest.opaque(x[:, ::2], x[:, 1::2], sizes[:, ::2], sizes[:, 1::2], None, False)
        else:
            nearest.opaque(x, x, sizes, sizes, None, True)
    assert largest.bytes <= linear


def test_operator_and_its_fake_agree():
    x, sizes = tokens(2, 20)
    padding = torch.arange(20) >= torch.tensor([[20], [13]])
    for arguments in ((x, x, sizes, sizes, padding, True), (x[:, :7], x, None, None, None, False)):
        torch.library.opcheck(nearest.opaque, arguments)


@pytest.mark.slow
@torch.no_grad()
def test_sixteen_thousand_tokens_of_thirty_two_images():
    """The bound for real: 64 MiB, where all similarities at once are 8 GiB."""
    x = torch.randn(32, 8192, 2)
    with Largest() as largest:
        nearest.opaque(x, x, None, None, None, False)
    assert largest.bytes <= 64 * 2**20
