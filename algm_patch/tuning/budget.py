"""The time that a search may take."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real

from tqdm import tqdm

BAR_FORMAT = "{desc}: {n:.0f} of {total:.0f} s |{bar}|{postfix}"
UNITS = {"s": 1, "min": 60, "h": 3600}


class OutOfTime(Exception):  # noqa: N818, not an error
    """Tell that the budget is spent."""


class Budget:
    """Count down seconds from now, with a progress bar.

    Args:
        seconds: to spend.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.started, self.until = seconds, time.monotonic(), seconds
        self.bar = tqdm(total=seconds, desc="tune", bar_format=BAR_FORMAT)

    def check(self) -> None:
        """Move the bar on.

        Raises:
            OutOfTime: if more seconds have passed than there were to spend, or than `part` of them allows.
        """
        elapsed = time.monotonic() - self.started
        self.bar.update(min(elapsed, self.seconds) - self.bar.n)
        if elapsed > self.until:
            raise OutOfTime

    @contextmanager
    def part(self, share: float) -> Iterator[None]:
        """End the body of a ``with`` statement, without an error, when this share of the whole budget is spent."""
        self.until = share * self.seconds
        try:
            yield
        except OutOfTime:
            pass
        finally:
            self.until = self.seconds

    def show(self, text: str) -> None:
        """Write a text behind the bar, from its next move on."""
        self.bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        """End the bar."""
        self.bar.close()


def seconds_of(budget: str | float) -> float:
    """Return the seconds of "90s", "10min" or "1h"; return a number of seconds as it is.

    Raises:
        ValueError: if it is something else, or not a finite number above 0.
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(s|min|h)\s*", budget) if isinstance(budget, str) else None
    seconds = float(match[1]) * UNITS[match[2]] if match else budget
    if not isinstance(seconds, Real) or not 0 < seconds < math.inf:
        raise ValueError(f"budget is a number of seconds, or such as '90s', '10min' or '1h'; got {budget!r}")
    return float(seconds)
