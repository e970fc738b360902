"""Ways to count what a forward pass does."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from algm_patch.patching.block_pass import BlockPass
from algm_patch.patching.forward_pass import ForwardPass


class Synchronisations(TorchDispatchMode):
    """Counts the operations that make the host wait for the device."""

    WAITING = (
        torch.ops.aten._local_scalar_dense,
        torch.ops.aten.nonzero,
        torch.ops.aten.is_nonzero,
        torch.ops.aten.equal,
    )
    count = 0

    def __enter__(self) -> Synchronisations:
        def tolist(tensor: Tensor, read: Any = torch.Tensor.tolist) -> Any:
            self.count += 1
            return read(tensor)

        self.patch = patch.object(torch.Tensor, "tolist", tolist)
        self.patch.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self.patch.stop()
        super().__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.overloadpacket in self.WAITING
        return function(*args, **kwargs or {})


def record_unmerges(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return a list to which every full grid that is given back from now on adds the tokens that it is made of."""
    found: list[Tensor] = []

    def leave(block: BlockPass, x: Tensor, lost: Tensor | None, real: Any = BlockPass.leave) -> Tensor:
        if block.gives_grid:
            found.append(x)
        return real(block, x, lost)

    def unmerge(forward_pass: ForwardPass, x: Tensor, *image: int, real: Any = ForwardPass.unmerge) -> Tensor:
        found.append(x)
        return real(forward_pass, x, *image)

    monkeypatch.setattr(BlockPass, "leave", leave)
    monkeypatch.setattr(ForwardPass, "unmerge", unmerge)
    return found
