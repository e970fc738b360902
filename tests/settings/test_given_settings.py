"""apply_algm(model, settings=s): what is given by hand changes s, everything else comes from s."""

import inspect
import re
from dataclasses import fields

import pytest

from algm_patch import Settings, apply_algm
from tests.support.models import build
from tests.support.records import settings_on

OTHER = Settings(clap_layer=2, gbm_layers=[3, 4], tau=0.6, gbm_tau=[0.7, 0.8], window=(3, 2), compare="key")


@pytest.fixture
def model():
    return build("ViT")


def test_without_changes_they_are_the_models(model):
    assert apply_algm(model, settings=OTHER).algm.settings == OTHER
    assert apply_algm(model, **OTHER).algm.settings == OTHER


@pytest.mark.parametrize(
    "changes",
    [
        {"clap_layer": 3},
        {"clap_layer": None},
        {"tau": 0.9},
        {"gbm_layers": [], "gbm_tau": "adaptive"},
        {"window": (2, 2)},
        {"batch": "min", "reduce": "pick"},
    ],
    ids=str,
)
def test_what_is_given_by_hand_changes_them(model, changes):
    apply_algm(model, settings=OTHER, **changes)
    assert model.algm.settings == OTHER.replace(**changes)
    for name in OTHER.keys() - changes.keys():
        assert model.algm.settings[name] == OTHER[name]


def test_what_is_given_by_hand_holds_also_where_it_is_the_default(model):
    defaults = Settings()
    assert apply_algm(model, clap_layer=1, settings=OTHER).algm.clap_layer == defaults.clap_layer == 1
    assert apply_algm(model, tau="auto", settings=OTHER).algm.tau == defaults.tau == "auto"
    assert apply_algm(model, compare="token", settings=OTHER).algm.compare == defaults.compare == "token"
    one_threshold = OTHER.replace(gbm_tau=0.7)
    assert apply_algm(model, gbm_layers=(5,), settings=one_threshold).algm.gbm_layers == defaults.gbm_layers == (5,)
    assert apply_algm(model, 1, (5,), "auto", settings=one_threshold).algm.settings == one_threshold.replace(
        clap_layer=1, gbm_layers=[5], tau="auto"
    )


def test_the_defaults_of_apply_algm_are_those_of_settings():
    parameters = inspect.signature(apply_algm).parameters
    assert list(parameters) == ["model", "clap_layer", "gbm_layers", "tau", "trunks", "settings", "changes"]
    for name in ("clap_layer", "gbm_layers", "tau"):
        assert parameters[name].default == getattr(Settings(), name)
    assert parameters["settings"].default is None


def test_without_settings_the_rest_is_the_defaults(model):
    assert apply_algm(model).algm.settings == Settings()
    assert apply_algm(model, 2, [4], 0.9).algm.settings == Settings(clap_layer=2, gbm_layers=[4], tau=0.9)


def test_a_patched_model_starts_from_the_defaults_again(model):
    apply_algm(model, settings=OTHER)
    assert apply_algm(model, tau=0.9).algm.settings == Settings(tau=0.9)
    assert apply_algm(model, settings=model.algm.settings, clap_layer=2).algm.settings == Settings(
        clap_layer=2, tau=0.9
    )


def test_a_record_stays_only_with_the_settings_that_it_is_of(model):
    settings = settings_on(model)
    assert apply_algm(model, settings=settings).algm.settings.record == settings.record
    assert apply_algm(model, settings=settings, clap_layer=1).algm.settings.record == settings.record  # the same
    assert apply_algm(model, settings=settings, tau=0.5).algm.settings.record is None
    assert settings.replace(tau=0.5).record is None


@pytest.mark.parametrize("verb", ["apply_algm", "Settings", "replace", "update", "using"])
def test_a_typo_lists_the_fields(model, verb):
    names = ", ".join(field.name for field in fields(Settings))
    message = rf"no setting 'gbm_layer'\. Did you mean 'gbm_layers'\? Settings: {re.escape(names)}"
    apply_algm(model, settings=OTHER)
    verbs = {
        "apply_algm": lambda **changes: apply_algm(model, **changes),
        "Settings": Settings,
        "replace": OTHER.replace,
        "update": model.algm.update,
        "using": lambda **changes: model.algm.using(**changes).__enter__(),
    }
    with pytest.raises(TypeError, match=message):
        verbs[verb](gbm_layer=[3])
    assert model.algm.settings == OTHER


@pytest.mark.parametrize("given", ["settings.json", {"tau": 0.9}, 0.9])
def test_what_is_no_settings_is_refused(model, given):
    with pytest.raises(TypeError, match=r"settings is a Settings, such as Settings\.load\(path\)"):
        apply_algm(model, settings=given)
    assert not hasattr(model, "algm")


def test_printed_settings_are_settings_and_a_printed_record_the_table(model):
    settings = settings_on(model)
    assert eval(str(settings), {"Settings": Settings}) == settings.replace(record=None)
    assert "Pareto" not in str(settings)
    assert settings.record.model not in str(settings)
    table = str(settings.record).splitlines()
    assert [line.split()[0] for line in table] == [
        "VisionTransformer,",
        "thresholds",
        "GFLOPs",
        "*",
        "63.4",
        "compared",
        "32",
        "divergence",
    ]
    assert eval(str(OTHER), {"Settings": Settings}) == OTHER
