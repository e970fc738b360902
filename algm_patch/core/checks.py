"""Checks of arguments: each returns the value in its own form, or raises an error that says what is expected."""

from __future__ import annotations

import operator
from numbers import Real
from typing import Any


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{name} is {', '.join(others)} or {last}, got {value!r}")


def check_layer(name: str, layer: Any) -> int:
    try:
        if isinstance(layer, bool):
            raise TypeError
        number = operator.index(layer)
    except TypeError:
        raise TypeError(f"{name} counts blocks from 1 in whole numbers, got {layer!r}") from None
    if number < 1:
        raise ValueError(f"{name} counts blocks from 1, got {layer!r}")
    return number


def check_tau(name: str, tau: Any, rules: tuple[str, ...]) -> Any:
    if isinstance(tau, str):
        if tau in rules:
            return tau
    elif not isinstance(tau, Real) or isinstance(tau, bool):
        raise TypeError(f"{name} is a number{one_of(rules)}; got {tau!r}")
    elif float(tau) >= -1:  # False for NaN
        return float(tau)
    raise ValueError(
        f"{name} is a cosine in [-1, 1], or above 1, which none reaches{',' * bool(rules)}{one_of(rules)}; got {tau!r}"
    )


def one_of(rules: tuple[str, ...]) -> str:
    return f" or one of {', '.join(map(repr, rules))}" if rules else ""


def check_window(window: Any) -> tuple[int, int]:
    try:
        high, wide = (operator.index(side) for side in window)
    except (TypeError, ValueError):
        raise TypeError(f"window is (height, width) in tokens, such as (2, 2); got {window!r}") from None
    if high < 1 or wide < 1 or high * wide < 2:
        raise ValueError(f"window holds at least two tokens, such as (2, 2); got {window!r}")
    return high, wide
