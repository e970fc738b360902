"""model.algm.update and model.algm.using: settings change together, or not at all, or for a while."""

from typing import Any

import pytest
import torch

from algm_patch import Settings, apply_algm, remove_algm
from tests.support import cases_segmenter
from tests.support.models import build, photo
from tests.support.records import settings_on


@pytest.fixture
def model():
    return apply_algm(build("ViT"), gbm_layers=[4], tau=0.5)


@torch.no_grad()
def test_coupled_settings_change_together(model):
    """Neither change is possible by itself."""
    before = model.algm.settings
    for name, value in {"gbm_tau": [0.9, 0.8], "clap_layer": 5}.items():
        with pytest.raises(ValueError, match=name):
            setattr(model.algm, name, value)
    assert model.algm.settings == before
    model.algm.update(gbm_layers=[3, 5], gbm_tau=[0.9, 0.8])
    assert model.algm.settings == before.replace(gbm_layers=[3, 5], gbm_tau=[0.9, 0.8])
    with pytest.raises(ValueError, match="give one threshold for each layer"):
        model.algm.gbm_layers = [3]
    model.algm.update(clap_layer=None, gbm_layers=[1], gbm_tau="adaptive")
    model(photo())
    assert model.algm.tokens_per_layer == [model.algm.token_map.sizes.shape[1]] * 5


@torch.no_grad()
def test_updated_it_runs_as_newly_patched(model):
    changes: dict[str, Any] = {"clap_layer": 2, "gbm_layers": [3], "compare": "key", "window": (3, 2)}
    model.algm.update(**changes)
    expected = apply_algm(build("ViT"), tau=0.5, **changes)
    assert torch.equal(model(photo()), expected(photo()))
    assert model.algm.settings == expected.algm.settings


def test_it_starts_from_settings_that_are_given(model):
    other = Settings(clap_layer=2, gbm_layers=[3], window=(3, 2))
    model.algm.update(settings=other, tau=0.9)
    assert model.algm.settings == other.replace(tau=0.9)
    model.algm.update(settings=other)
    assert model.algm.settings == other


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"tau": 0.9, "clap_layer": 5}, ValueError),  # behind GBM
        ({"tau": 0.9, "gbm_layers": [6]}, ValueError),  # of five blocks
        ({"tau": -3, "window": (3, 2)}, ValueError),
        ({"tau": 0.9, "compare": "keys"}, ValueError),
        ({"tau": 0.9, "windows": (3, 2)}, TypeError),
        ({"tau": 0.9, "merge_to": 0.6}, ValueError),
        ({"tau": 0.9, "settings": "settings.json"}, TypeError),
        ({"tau": 0.9, "unmerge_at": "after_head"}, ValueError),
    ],
    ids=str,
)
def test_after_an_error_nothing_has_changed(model, changes, error):
    before = model.algm.settings
    with pytest.raises(error):
        model.algm.update(**changes)
    assert model.algm.settings == before
    with pytest.raises(error), model.algm.using(**changes):
        pytest.fail("entered")
    assert model.algm.settings == before


def test_where_tokens_unmerge_is_refused_with_the_remedy(model):
    before = model.algm.settings
    remedy = r"patches other modules than 'before_head' did\. Call apply_algm\(model, unmerge_at='after_head'\) again"
    for given in ({"unmerge_at": "after_head"}, {"settings": before.replace(unmerge_at="after_head")}):
        with pytest.raises(ValueError, match=remedy):
            model.algm.update(**given)
    assert model.algm.settings == before
    model.algm.update(unmerge_at="before_head", tau=0.9)  # which it is
    assert model.algm.tau == 0.9


def test_where_a_decoder_is_known_it_is_refused_too():
    model = apply_algm(cases_segmenter.build("mask"), gbm_layers=[3], unmerge_at="after_head")
    with pytest.raises(ValueError, match=r"Call apply_algm\(model, unmerge_at='before_head'\) again"):
        model.algm.update(unmerge_at="before_head")
    assert model.algm.settings.unmerge_at == "after_head"


@torch.no_grad()
def test_using_holds_within(model):
    before, whole = model.algm.settings, model(photo())
    with model.algm.using(tau=1.05, gbm_layers=[]) as given:
        assert given is None
        assert model.algm.settings == before.replace(tau=1.05, gbm_layers=[])
        model(photo())
        assert model.algm.tokens_per_layer == [31] * 5
    assert model.algm.settings is before
    assert torch.equal(model(photo()), whole)
    with model.algm.using(settings=Settings(clap_layer=2), tau=0.6):
        assert model.algm.settings == Settings(clap_layer=2, tau=0.6)
    assert model.algm.settings is before


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_using_restores_after_an_error(model, error):
    before = model.algm.settings
    with pytest.raises(error), model.algm.using(tau=0.9):
        raise error
    assert model.algm.settings is before


def test_using_nests_and_takes_back_what_changed_within(model):
    before = model.algm.settings
    with model.algm.using(tau=0.9):
        with model.algm.using(window=(3, 2)):
            assert (model.algm.tau, model.algm.window) == (0.9, (3, 2))
            model.algm.clap_layer = 2
        assert model.algm.settings == before.replace(tau=0.9)
        with pytest.raises(ValueError, match="gbm_layers"), model.algm.using(gbm_layers=[6]):
            pytest.fail("entered")
        assert model.algm.settings == before.replace(tau=0.9)
    assert model.algm.settings is before


def test_a_removed_model_stays_removed(model):
    handle = model.algm

    def removed_inside():
        with handle.using(tau=0.9):
            remove_algm(model)
            raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"):
        removed_inside()
    assert not hasattr(model, "algm")
    with pytest.raises(RuntimeError, match="no longer patched"):
        handle.tau = 0.9


def test_a_model_that_is_patched_anew_keeps_the_newer_settings(model):
    with model.algm.using(tau=0.9):
        apply_algm(model, tau=0.7, gbm_layers=[3])
    assert (model.algm.tau, model.algm.gbm_layers) == (0.7, (3,))


def test_settings_of_another_model_warn(model):
    with pytest.warns(UserWarning, match="these settings were measured on"):
        model.algm.update(settings=settings_on(model, blocks=7))
