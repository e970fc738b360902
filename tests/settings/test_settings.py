"""Settings: what is accepted, what is refused, and how the errors say it."""

import re

import numpy as np
import pytest

from algm_patch import apply_algm
from algm_patch.settings.settings import Settings
from tests.support.models import build


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
        {"proportional_attention": False},
        {"unmerge_at": "after_head"},
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
        ({"unmerge_at": "late"}, ValueError, "'before_head' or 'after_head', got 'late'"),
        ({"gbm_layers": [4, 2], "gbm_tau": [0.9, 0.8]}, ValueError, r"for gbm_layers=\[4, 2\]: .* rising order"),
        ({"gbm_layers": [4, 2], "merge_to": [1.0, 0.5, 0.9]}, ValueError, r"for gbm_layers=\[4, 2\]: .* rising order"),
        ({"record": 0.98}, TypeError, "record comes with settings that the library found"),
        ({"calibrated": 0.98}, TypeError, "calibrated comes with settings that the library found"),
        (
            {"gbm_layer": [3]},
            TypeError,
            r"no setting 'gbm_layer'\. Did you mean 'gbm_layers'\? Settings: clap_layer, gbm",
        ),
        ({"threshold": 0.9}, TypeError, r"no setting 'threshold'\. Settings: clap_layer, gbm_layers, tau, "),
    ],
)
def test_refused(given_, error, message):
    with pytest.raises(error, match=message):
        Settings(**given_)


@pytest.mark.parametrize("given_", [{"gbm_layers": [4, 2]}, {"gbm_layers": [4, 2], "gbm_tau": 0.9, "tau": 0.5}])
def test_layers_come_in_any_order_where_nothing_is_listed_with_them(given_):
    assert Settings(**given_).gbm_layers == (2, 4)


@pytest.mark.parametrize(
    ("given_", "others"),
    [
        ({"merge_to": 0.6, "tau": 0.9}, ["gbm_tau"]),
        ({"merge_to": 0.6, "gbm_tau": 0.9}, [" tau"]),
        ({"clap_layer": 6}, [r"gbm_layers=[5]:"]),
        ({"clap_layer": None, "gbm_tau": "tau"}, ["tau='auto' is"]),
    ],
    ids=str,
)
def test_errors_do_not_speak_of_values_that_nobody_gave(given_, others):
    with pytest.raises(ValueError) as caught:  # noqa: PT011, each of its own
        Settings(**given_)
    assert not [other for other in others if other in str(caught.value)]


def test_a_default_that_does_not_fit_a_model_is_called_so():
    with pytest.raises(ValueError, match=r"gbm_layers \(by default\) names layer 5, but .* has 3 blocks"):
        apply_algm(build("ViT", depth=3))


def test_unknown_settings_leave_the_model_as_it_was():
    model = build("ViT")
    with pytest.raises(TypeError, match="Did you mean 'gbm_layers'"):
        apply_algm(model, gbm_layer=[3])
    assert not hasattr(model, "algm")
    apply_algm(model)
    with pytest.raises(AttributeError, match=r"no setting 'gbm_layer'\. Did you mean 'gbm_layers'"):
        model.algm.gbm_layer = [3]


@pytest.mark.parametrize(
    ("given_", "off"),
    [({"tau": 90}, "clap_layer=None"), ({"gbm_tau": 90}, "gbm_layers=[]"), ({"gbm_tau": [1.06]}, "gbm_layers=[]")],
)
def test_a_threshold_that_is_a_percentage_warns_at_the_users_line(given_, off):
    (name,) = given_
    for call in (Settings, lambda **given_: apply_algm(build("ViT", depth=5), **given_)):
        told = rf"^{name}=.* merges (no windows|nothing in its layers).*0\.9 and not 90; .*{re.escape(off)}"
        with pytest.warns(UserWarning, match=told) as seen:
            call(**given_)
        assert [warning.filename for warning in seen] == [__file__]


@pytest.mark.parametrize("given_", [{"tau": 1.05}, {"gbm_tau": 1.05}, {"tau": "paper", "gbm_tau": [0.9]}])
def test_a_threshold_just_above_1_says_that_nothing_is_to_merge(given_, recwarn):
    Settings(**given_)
    assert not recwarn.list
