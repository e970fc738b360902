"""Work done in several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any


def run_in_threads(jobs: Sequence[Callable[[], Any]], times: int = 20) -> list[Any]:
    """Do each job, so many times, in a thread of its own. Return the results of each job."""
    results: list[Any] = [None] * len(jobs)

    def repeat(i: int, job: Callable[[], Any]) -> None:
        results[i] = [job() for _ in range(times)]

    threads = [threading.Thread(target=repeat, args=item) for item in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
