"""Settings: what is accepted, what is refused and how it is said."""

import numpy as np
import pytest

from algm_patch.settings import Settings


@pytest.mark.parametrize(
    "given_",
    [
        {"clap_layer": None, "gbm_layers": []},
        {"gbm_layers": (11, 21, 31)},
        {"gbm_layers": range(3, 5)},
        {"clap_layer": 5, "gbm_layers": [5]},
        {"clap_layer": np.int64(2)},
        {"tau": -1},
        {"tau": 1},
        {"tau": 1.01},
        {"tau": float("inf")},
        {"tau": np.float32(0.5)},
        {"tau": "paper", "gbm_tau": "tau"},
        {"tau": 0.9, "gbm_tau": "tau", "clap_layer": None},
        {"window": [1, 2]},
        {"taps": "all", "proportional_attention": False},
        {"unmerge": "after_head"},
    ],
)
def test_accepted(given_):
    settings = Settings(**given_)
    assert isinstance(settings.gbm_layers, tuple)
    assert hash(settings) == hash(Settings(**given_))


@pytest.mark.parametrize(
    ("given_", "error", "message"),
    [
        ({"clap_layer": 0}, ValueError, "clap_layer counts blocks from 1, got 0"),
        ({"clap_layer": 1.5}, TypeError, "whole numbers, got 1.5"),
        ({"clap_layer": True}, TypeError, "got True"),
        ({"gbm_layers": 5}, TypeError, r"gbm_layers is a list of layers, such as \[5\]"),
        ({"gbm_layers": "5"}, TypeError, "got '5'"),
        ({"gbm_layers": [5, 5]}, ValueError, "names a layer twice"),
        ({"gbm_layers": [-1]}, ValueError, "got -1"),
        ({"clap_layer": 6, "gbm_layers": [5]}, ValueError, "clap_layer=6 comes after"),
        ({"tau": -1.1}, ValueError, r"cosine in \[-1, 1\], or above 1"),
        ({"tau": float("nan")}, ValueError, "got nan"),
        ({"tau": "adaptive"}, ValueError, "'auto', 'paper'"),
        ({"tau": None}, TypeError, "tau is a number or one of"),
        ({"tau": True}, TypeError, "got True"),
        ({"gbm_tau": "auto"}, ValueError, "'adaptive', 'tau'"),
        ({"gbm_tau": "tau", "clap_layer": None}, ValueError, "takes CLAP's threshold"),
        ({"window": (1, 1)}, ValueError, "at least two tokens"),
        ({"window": (0, 4)}, ValueError, "at least two tokens"),
        ({"window": 2}, TypeError, "height, width"),
        ({"window": (2, 2, 2)}, TypeError, "height, width"),
        ({"proportional_attention": "yes"}, TypeError, "True or False"),
        ({"taps": "some"}, ValueError, "'auto' or 'all'"),
        ({"unmerge": "late"}, ValueError, "'before_head' or 'after_head', got 'late'"),
        ({"unmerge": "after_head", "taps": "all"}, ValueError, "Give up one of them"),
    ],
)
def test_refused(given_, error, message):
    with pytest.raises(error, match=message):
        Settings(**given_)
