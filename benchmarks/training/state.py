"""Keep the state of a run on disk, so that it can be resumed."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from .options import RunError


@dataclass
class Progress:
    """Hold what a run has done.

    Attributes:
        facts: what the result depends on; the same when a run is resumed.
        history: of each finished epoch its number, the mean loss, and mIoU, accuracy and GFLOPs on the validation
            images.
    """

    facts: dict[str, Any]
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def best(self) -> float:
        """Return the best mIoU so far."""
        return max((epoch["mIoU"] for epoch in self.history), default=-1.0)

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what was kept, or raise RunError if it is of another run."""
        other = [name for name in self.facts if self.facts[name] != state["facts"].get(name)]
        if other:
            was, now = ({name: facts.get(name) for name in other} for facts in (state["facts"], self.facts))
            raise RunError(
                f"the run to resume had {was}, this command has {now}. Give the same options, or another --out"
            )
        self.history = state["history"]


def save_state(accelerator: Accelerator, out: Path, epoch: int) -> None:
    """Write the newest state, whole or not at all, and remove the one before."""
    whole = out / f"epoch-{epoch:04}"
    unfinished = whole.with_suffix(".unfinished")
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        unfinished.replace(whole)
        for other in out.glob("epoch-*"):
            if other != whole:
                shutil.rmtree(other)


def newest_state(options: argparse.Namespace) -> Path | None:
    """Return the state to go on from; None: begin anew.

    Raises:
        RunError: if there is nothing to resume, or something that would be overwritten.
    """
    if options.resume and not options.out.is_dir():
        raise RunError(f"--resume: {options.out} is not there")
    if not options.resume and any(options.out.glob("*")):
        raise RunError(f"{options.out} is not empty. Go on with what is there (--resume), or give another --out")
    return max(options.out.glob("epoch-" + 4 * "[0-9]"), default=None)
