"""Checks of settings: each returns the value in its own form, or raises an error that says what is expected."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from ..core.checks import check_layer, check_tau
from ..core.thresholds import Share
from ..warning import warn_user

# A threshold above 1 merges nothing; one above this, short of infinity, was hardly meant.
LARGEST = 1.05


def no_such(name: str, names: Iterable[str]) -> str:
    """Return the end of an error for a name that there is not: the name, the nearest of ``names``, and all of them."""
    names = list(names)
    nearest = difflib.get_close_matches(name, names, n=1)
    return f"{name!r}.{f' Did you mean {nearest[0]!r}?' if nearest else ''} Settings: {', '.join(names)}"


def check_layers(layers: Any) -> tuple[int, ...]:
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise TypeError(f"gbm_layers is a list of layers, such as [5], or [] for none; got {layers!r}")
    numbers = tuple(check_layer("gbm_layers", layer) for layer in layers)
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"gbm_layers names a layer twice: {list(numbers)}")
    return numbers


def check_clap_tau(tau: Any) -> Any:
    return tau if isinstance(tau, Share) else check_number("tau", tau, ("auto", "paper"), "clap_layer=None")


def check_gbm_tau(tau: Any, layers: tuple[int, ...]) -> Any:
    if isinstance(tau, Share):
        return tau
    off = "gbm_layers=[]"
    if not isinstance(tau, (list, tuple)):
        return check_number("gbm_tau", tau, ("adaptive", "tau"), off)
    if len(tau) != len(layers) or list(layers) != sorted(layers):
        raise ValueError(
            f"gbm_tau={list(tau)} for gbm_layers={list(layers)}: give one threshold for each layer, the layers in "
            "rising order; or one threshold for all"
        )
    return tuple(one if isinstance(one, Share) else check_number("gbm_tau", one, (), off) for one in tau)


def check_number(name: str, tau: Any, rules: tuple[str, ...], off: str) -> Any:
    """Return a threshold or the name of a rule; warn of one so far above 1 that it is a slip, such as a percentage.

    Args:
        off: what to write to merge nothing on purpose.
    """
    tau = check_tau(name, tau, rules)
    if isinstance(tau, float) and LARGEST < tau < math.inf:
        warn_user(
            f"{name}={tau:g} merges {'no windows' if name == 'tau' else 'nothing in its layers'}, as a cosine is at "
            f"most 1. A percentage is written as a part, 0.9 and not 90; if this is meant, write {off}"
        )
    return tau


def check_merge_to(merge_to: Any, merges: list[tuple[str, float]]) -> float | tuple[float | int, ...]:
    """Return ``merge_to`` for merges with these names and least shares that they can leave."""
    if isinstance(merge_to, (list, tuple)):
        if len(merge_to) != len(merges):
            raise ValueError(
                f"merge_to={list(merge_to)} for {len(merges)} merges: give one share or number for each "
                f"({', '.join(name for name, _ in merges) or 'there is none'}), or one share for all"
            )
        return tuple(check_part(part, [merge]) for part, merge in zip(merge_to, merges, strict=True))
    if isinstance(merge_to, bool) or not isinstance(merge_to, Real) or isinstance(merge_to, Integral):
        raise TypeError(
            "merge_to is the share of the patches that each merge leaves, such as 0.6, or a list with one share or "
            f"whole number of patches for each merge; got {merge_to!r}"
        )
    return check_part(merge_to, merges)


def check_part(part: Any, merges: list[tuple[str, float]]) -> float | int:
    """Return the share of its patches, or the number of them, that each of some merges leaves."""
    if isinstance(part, bool) or not isinstance(part, Real):
        raise TypeError(f"merge_to holds shares such as 0.6 and whole numbers of patches; got {part!r}")
    if isinstance(part, Integral):
        if part < 1:
            raise ValueError(f"merge_to names {part} patches to leave: at least 1")
        return int(part)
    for name, least in merges:
        if not least <= float(part) <= 1:
            raise ValueError(f"merge_to={part}: {name} leaves a share of its patches between {least:g} and 1")
    return float(part)


def check_names(given: Iterable[str], names: Iterable[str]) -> None:
    """Raise TypeError if a name is no setting's."""
    names = list(names)
    if unknown := next((name for name in given if name not in names), None):
        raise TypeError(f"there is no setting {no_such(unknown, names)}")


def check_settings(settings: Any) -> Any:
    """Return settings, or raise TypeError if it is something else, such as the path of a file."""
    if isinstance(settings, type) or not hasattr(settings, "calibrated_tau"):
        raise TypeError(
            f"settings is a Settings, such as Settings.load(path) or model.algm.settings gives; got {settings!r:.80}"
        )
    return settings


def check_record(name: str, record: Any, cls: type) -> Any:
    """Return a record of this class, or None."""
    if record is None or isinstance(record, cls):
        return record
    raise TypeError(f"{name} comes with settings that the library found ({cls.__name__}); got {record!r:.80}")


def check_switch(name: str, value: Any, follows: bool) -> None:
    """Raise TypeError unless a value is True or False; or None, if the switch follows ``proportional_attention``."""
    if not isinstance(value, bool) and not (follows and value is None):
        kinds = "True, False, or None (as proportional_attention);" if follows else "True or False,"
        raise TypeError(f"{name} is {kinds} got {value!r}")
