"""Give the commands of the examples options, steps that are told, times in words, and errors in one line."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from typing import Any

import huggingface_hub
import timm
from torch import nn

from algm_patch import Settings


def run(main: Callable[[], object]) -> None:
    """Run a command and exit. What goes wrong is told in one line, without a traceback."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}")


def step(text: str) -> None:
    """Tell at once what comes next."""
    print(f"{text} ...", flush=True)


def times(before: float, after: float, less: str, more: str) -> str:
    """Return how many times less there is after than before, or how many times more."""
    return f"{before / after:.2f} x {less}" if after <= before else f"{after / before:.2f} x {more}"


# -- options


def setting(name: str) -> Callable[[str], Any]:
    """Return what reads an option's text as this setting, and refuses in the library's words what it warns of."""

    def read(text: str) -> float | str:
        value = number_or_name(text)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                Settings(**{name: value})
        except (TypeError, ValueError, UserWarning) as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return value

    return read


def number_or_name(text: str) -> float | str:
    """Return a number, or a text that is none as it is."""
    try:
        return float(text)
    except ValueError:
        return text


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return what reads an option's text as a whole number within bounds."""

    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"a whole number from {least} to {most}, not {text!r}")
        return int(text)

    return read


# -- models


def load_timm(name: str, **options: Any) -> nn.Module:
    """Return a timm model with weights from the hub, in eval mode.

    Raises:
        OSError: naming the model, if the weights can be had neither from the hub nor from its cache.
        RuntimeError: if timm has no such model.
    """
    step(f"fetching {name} from the hub (a minute, if it does not answer)")
    huggingface_hub.utils.logging.set_verbosity_error()  # each of its retries is a line
    try:
        return timm.create_model(name, pretrained=True, **options).eval()
    except OSError as error:
        why = str(error).partition("\n")[0]
        raise OSError(
            f"{name}: its weights are not on this machine, and the hub did not give them ({why}). Without --model no "
            "hub is needed"
        ) from error
