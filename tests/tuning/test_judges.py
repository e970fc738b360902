"""Answers are judged by what they are: classes, values or tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algm_patch import apply_algm
from algm_patch.tuning.judges import judge_of, predict_dense, token_shapes
from algm_patch.tuning.keeping import kept_and_bound
from tests.support.models import ALL, build, photo


@pytest.mark.parametrize(
    ("answer", "other", "name", "kept"),
    [
        (torch.eye(4).expand(1, 4, 4, 4) * torch.arange(4.0).view(1, 4, 1, 1), None, "pixels", 1),
        (torch.tensor([[[0, 1], [1, 1]]]), torch.tensor([[[0, 1], [1, 0]]]), "pixels", 0.75),
        (torch.tensor([[[0.0, 1], [2, 3]]]), torch.tensor([[[5.0, 7], [9, 11]]]), "correlation", 1),
        (torch.tensor([[[[0.0, 1], [2, 3]]]]), -torch.tensor([[[[0.0, 1], [2, 3]]]]), "correlation", -1),
        (torch.ones(1, 3, 3), torch.ones(1, 3, 3), "correlation", 1),
        (torch.ones(1, 3, 3), torch.zeros(1, 3, 3), "correlation", 0),
        (torch.ones(1, 30, 8), 2 * torch.ones(1, 30, 8), "cosine", 1),
        (torch.ones(1, 31, 8), -torch.ones(1, 31, 8), "cosine", -1),
        (torch.ones(1, 5, 6, 8), -torch.ones(1, 5, 6, 8), "cosine", -1),
    ],
)
def test_judges(answer, other, name, kept):
    judge = judge_of(answer, token_shapes((5, 6), 1, 8))
    assert judge.names[0] == name
    other = answer if other is None else other
    found, low = kept_and_bound(judge, [judge.compare(judge.read(answer), judge.read(other))], bounded=True)
    assert found[name] == pytest.approx(kept)
    assert low == found  # of one image, every resample is the same


# A ViT's tokens: patches a side, prefix, width (of Ti, S, B, L, g and small ones, which answers' sides often equal).
GRIDS = st.tuples(st.integers(1, 40), st.integers(1, 40)) | st.sampled_from([(14, 14), (24, 16), (24, 24), (37, 37)])
WIDTHS = st.integers(1, 40) | st.sampled_from([192, 384, 768, 1024, 1536])


@given(GRIDS, st.integers(0, 8), WIDTHS, st.data())
def test_every_answer_is_judged_by_what_it_is(grid, prefix, width, data):
    """Draw an answer of any shape and type. Its sides often equal those of the tokens."""
    high, wide = grid
    own = st.sampled_from([high, wide, width, prefix + high * wide, high * wide, 14 * high, 14 * wide])
    shape = data.draw(st.lists(own | st.integers(1, 512), min_size=2, max_size=3).map(tuple))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]))
    answer = torch.zeros((), dtype=dtype).expand(1, *shape)
    one = len(shape) == 2 or shape[0] == 1
    tokens = shape in [(prefix + high * wide, width), (high * wide, width)] or (shape == (*grid, width) and not one)
    expected = (
        "cosine" if tokens and dtype.is_floating_point
        else "pixels" if not one or not dtype.is_floating_point
        else "correlation"
    )  # fmt: skip
    assert judge_of(answer, token_shapes(grid, prefix, width)).names[0] == expected


def test_a_depth_map_of_a_small_vit_is_a_map():
    """The map has 384x384 pixels, the model 577 tokens of width 384."""
    assert judge_of(torch.rand(1, 384, 384), token_shapes((24, 24), 1, 384)).names[0] == "correlation"


@pytest.mark.parametrize("channel", [False, True])
def test_a_map_of_the_tokens_own_shape_is_told_by_its_channel(channel):
    answer = torch.rand(1, 30, 8)
    judge = judge_of(answer[:, None] if channel else answer, token_shapes((5, 6), 1, 8))
    assert judge.names[0] == ("correlation" if channel else "cosine")


@pytest.mark.parametrize("family", sorted(ALL))
def test_the_tokens_of_every_family_are_tokens(family):
    model = apply_algm(build(family, grid=(6, 4), depth=1), gbm_layers=[])
    with torch.no_grad():
        answer = predict_dense(model, photo(family, 1, (6, 4)))
    past = model.algm.last_pass
    shapes = token_shapes(past.grid, past.num_prefix_tokens, past.width)
    assert judge_of(answer, shapes).names[0] == "cosine"
