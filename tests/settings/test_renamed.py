"""Settings by the names of version 0.1: each works, with one DeprecationWarning, and does what the new name does."""

import re
from dataclasses import asdict

import pytest

from algm_patch import Settings, apply_algm
from tests.support.deprecation import deprecated
from tests.support.models import build
from tests.support.records import settings_on

RENAMED = {
    "tokens": ("merge_to", 0.6),
    "metric": ("compare", "key"),
    "unmerge": ("unmerge_at", "before_head"),
    "measured": ("record", None),
}
EVERY = pytest.mark.parametrize(("old", "new", "value"), [(old, *new) for old, new in RENAMED.items()])
# Those that a handle has as attributes, other than the default.
CHANGED = pytest.mark.parametrize(("old", "new", "value"), [(old, *RENAMED[old]) for old in ("tokens", "metric")])


def renamed(old, new):
    return f"the setting {old!r} is now {new!r}"


@EVERY
def test_settings_take_old_names(old, new, value):
    with deprecated(renamed(old, new), __file__):
        settings = Settings(**{old: value})
    assert settings == Settings(**{new: value})


@EVERY
def test_replace_takes_old_names(old, new, value):
    with deprecated(renamed(old, new), __file__):
        settings = Settings(gbm_layers=[3]).replace(**{old: value})
    assert settings == Settings(gbm_layers=[3], **{new: value})


@EVERY
def test_apply_algm_takes_old_names(old, new, value):
    model = build("ViT")
    with deprecated(renamed(old, new), __file__):
        apply_algm(model, gbm_layers=[3], **{old: value})
    assert model.algm.settings == Settings(gbm_layers=[3], **{new: value})


@EVERY
def test_update_and_using_take_old_names(old, new, value):
    model = apply_algm(build("ViT"))
    before = model.algm.settings
    with deprecated(renamed(old, new), __file__), model.algm.using(**{old: value}):
        assert model.algm.settings == Settings(**{new: value})
    assert model.algm.settings == before
    with deprecated(renamed(old, new), __file__):
        model.algm.update(**{old: value})
    assert model.algm.settings == Settings(**{new: value})


@CHANGED
def test_old_names_write_and_read_as_attributes(old, new, value):
    model = apply_algm(build("ViT"))
    with deprecated(renamed(old, new), __file__):
        setattr(model.algm, old, value)
    assert model.algm.settings == Settings(**{new: value})
    with deprecated(f"model.algm.{old} is now model.algm.{new}", __file__):
        assert getattr(model.algm, old) == value == getattr(model.algm, new)


def test_an_old_name_is_refused_as_the_new_one_is():
    model = apply_algm(build("ViT"))
    before = model.algm.settings
    with (
        pytest.warns(DeprecationWarning, match="now 'unmerge_at'"),
        pytest.raises(ValueError, match=r"Call apply_algm\(model, unmerge_at="),
    ):
        model.algm.unmerge = "after_head"
    assert model.algm.settings == before


@pytest.mark.parametrize("taps", ["auto", "all"])
def test_taps_are_accepted_without_effect(taps):
    with deprecated(f"taps={taps!r} has no effect", __file__):
        settings = Settings(taps=taps)  # type: ignore[call-arg]
    assert settings == Settings()
    with deprecated("has no effect", __file__):
        model = apply_algm(build("ViT"), taps=taps)
    assert model.algm.settings == Settings()
    with deprecated("has no effect", __file__):
        model.algm.taps = taps
    assert model.algm.settings == Settings()


@EVERY
def test_a_setting_by_both_of_its_names_is_refused(old, new, value):
    message = f"'{old}' is the old name of '{new}', and both are given. Leave out '{old}'"
    with pytest.warns(DeprecationWarning, match=new), pytest.raises(TypeError, match=re.escape(message)):
        Settings(**{old: value, new: value})


def test_a_record_goes_by_its_old_name_too():
    settings = settings_on(build("ViT"))
    values = {name: settings[name] for name in settings.keys() if name != "record"}  # noqa: SIM118
    with pytest.warns(DeprecationWarning, match="'measured' is now 'record'"):
        assert Settings(**values, measured=settings.record) == settings  # type: ignore[call-arg]


def test_new_names_do_not_warn(recwarn):
    settings = Settings(merge_to=0.6, compare="key", unmerge_at="before_head", record=None)
    model = apply_algm(build("ViT"), settings=settings)
    model.algm.compare = "token"
    model.algm.update(merge_to=0.7)
    assert asdict(model.algm.settings) == asdict(Settings(merge_to=0.7))
    assert not recwarn.list


@pytest.mark.parametrize("old", RENAMED)
def test_settings_are_read_by_old_names(old):
    new, _ = RENAMED[old]
    settings = Settings(gbm_layers=[3])
    with deprecated(f"the setting {old!r} is now {new!r}", __file__):
        found = getattr(settings, old)
    assert found == getattr(settings, new)
    with deprecated(f"the setting {old!r} is now {new!r}", __file__):
        assert settings[old] == found


def test_what_was_never_a_setting_is_no_attribute():
    with pytest.raises(AttributeError, match="'Settings' object has no attribute 'warp'"):
        _ = Settings().warp
