"""The settings ``compare``, ``reduce`` and ``place``: their choices and defaults."""

import pytest

from algm_patch import apply_algm
from algm_patch.settings.settings import Settings
from tests.support.models import build


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"compare": "keys"}, "compare is 'token', 'key', 'query' or 'value', got 'keys'"),
        ({"compare": None}, "got None"),
        ({"reduce": "max"}, "reduce is 'mean' or 'pick', got 'max'"),
        ({"place": "before_attention"}, "place is 'before_mlp' or 'after_mlp', got 'before_attention'"),
    ],
)
def test_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Settings(**given)
    model = build("ViT")
    with pytest.raises(ValueError, match=message):
        apply_algm(model, **given)
    assert not hasattr(model, "algm")


def test_the_defaults_are_the_published_ones():
    assert (Settings.compare, Settings.reduce, Settings.place) == ("token", "mean", "before_mlp")
