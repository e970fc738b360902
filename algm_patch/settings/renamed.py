"""Names of an earlier release, which work for this one with a DeprecationWarning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar

from ..deprecated import warn_of
from ..warning import warn_user
from .checks import check_names

T = TypeVar("T")

# Settings, by their names until 0.1.
SETTINGS = {"tokens": "merge_to", "metric": "compare", "unmerge": "unmerge_at", "measured": "record"}
# A setting without effect: blocks whose output is read give back the full grid by themselves.
WITHOUT_EFFECT = "taps"


def by_new_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings under their new names, and warn of each old one.

    Raises:
        TypeError: if a setting is given by its old and by its new name.
    """
    settings = {}
    for name, value in given.items():
        if name == WITHOUT_EFFECT:
            warn_user(
                f"algm_patch: {name}={value!r} has no effect: blocks whose output is read give back the full grid by "
                "themselves. Leave it out",
                DeprecationWarning,
            )
            continue
        if name in SETTINGS:
            warn_of(f"the setting {name!r}", repr(SETTINGS[name]))
            if SETTINGS[name] in given:
                raise TypeError(
                    f"{name!r} is the old name of {SETTINGS[name]!r}, and both are given. Leave out {name!r}"
                )
        settings[SETTINGS.get(name, name)] = value
    return settings


def accepts_old_names(cls: type[T]) -> type[T]:
    """Class decorator: the constructor takes settings by their old names too, and lists the fields after a typo."""
    constructor: Callable[..., None] = cls.__init__

    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]

    @wraps(constructor)
    def with_old_names(self: Any, *args: Any, **given: Any) -> None:
        given = by_new_names(given)
        check_names(given, names)
        constructor(self, *args, **given)

    cls.__init__ = with_old_names  # type: ignore[method-assign]
    return cls


def by_old_name(settings: Any, name: str) -> Any:
    """Return the value of a setting that is asked for by its old name, and warn.

    Raises:
        AttributeError: if it never was the name of one.
    """
    if name == WITHOUT_EFFECT:
        warn_of(f"the setting {name!r}", "without effect, and gone")
        return "auto"
    if name not in SETTINGS:
        raise AttributeError(f"{type(settings).__name__!r} object has no attribute {name!r}")
    warn_of(f"the setting {name!r}", repr(SETTINGS[name]))
    return getattr(settings, SETTINGS[name])
