"""A full grid that is made when something reads it.

A method that the library does not know may read what any block leaves, and mostly hands it to the next block alone.
So in inference such a block leaves an `UnreadGrid` in the place of the full grid. The next block takes the merged
tokens out of it; whatever else is done with it is done with the full grid, which it then becomes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import ref as weakref

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .block_pass import BlockPass
from .tracker import remember_as

# What tells the form of a tensor, and reads none of its numbers.
OF_FORM = {
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point),
    *(vars(torch._C.TensorBase)[name].__get__ for name in ("shape", "ndim", "dtype", "device", "is_cuda")),
    vars(torch._C.TensorBase)["requires_grad"].__get__,
}


class UnreadGrid(Tensor):
    """Stand for the full grid [B, P+N, D] that a block gives back, until something reads it.

    Attributes:
        tokens: as the block left them: merged, and packed if images have different numbers of them.
        block: that left them.
        lost: what the original tokens had lost by then.
        full: the grid, where it is made and this object could not become it.
    """

    tokens: Tensor
    block: BlockPass
    lost: Tensor | None
    full: Tensor | None

    @classmethod
    def of(cls, tokens: Tensor, block: BlockPass) -> UnreadGrid:
        """Return the grid of the tokens that a block leaves."""
        assert block.after is not None
        shape = *block.after.labels.shape, tokens.shape[2]
        grid: Any = Tensor._make_wrapper_subclass(cls, shape, dtype=tokens.dtype, device=tokens.device)
        torch._C._set_throw_on_mutable_data_ptr(grid)  # extensions that look for numbers behind torch's back find none
        grid.tokens, grid.block, grid.lost, grid.full = tokens, block, block.lost, None
        with torch._C.DisableTorchFunctionSubclass():
            remember_as(grid, tokens)
        block.unread = weakref(grid)
        return grid

    @property
    def untouched(self) -> bool:
        """True while nothing has read the grid, and no gradient flows through it."""
        return self.full is None and not in_a_graph(self)

    def read(self) -> Tensor:
        """Return the full grid, made once."""
        if self.full is None:
            with torch.inference_mode(self.tokens.is_inference()), torch.no_grad():
                self.full = self.block.leave(self.tokens, self.lost)
            if self.tokens.is_cuda:  # which may go while another stream than theirs still copies them
                for held in (self.tokens, self.lost):
                    if held is not None:
                        held.record_stream(torch.cuda.current_stream(held.device))
            self.lost = None
            remember_as(self.full, self.tokens)
            self.block.unread = None
        return self.full

    def become_full(self) -> Tensor:
        """Return the full grid: this object, which is an ordinary tensor from now on, if nothing in torch holds it."""
        made_before, full = self.full is not None, self.read()
        if made_before:
            return full
        try:
            with torch._C.DisableTorchFunctionSubclass():
                self.full = None
                torch.utils.swap_tensors(self, full)
        except RuntimeError:  # a weak reference, or an operation under way
            self.full = full
            return full
        return self

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function of torch: on the full grid, unless it asks for the form."""
        if function in OF_FORM and args[0].full is None:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **kwargs or {})
        grids: list[UnreadGrid] = []
        tree_map_only(cls, grids.append, (args, kwargs))
        if any(map(in_a_graph, grids)):  # autograd must see the grid itself
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **kwargs or {})
        args, kwargs = tree_map_only(cls, cls.become_full, (tuple(args), kwargs or {}))
        return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation that did not come by ``__torch_function__``, such as from C++, on the full grid."""
        args, kwargs = tree_map_only(cls, cls.read, (tuple(args), kwargs or {}))
        return function(*args, **kwargs)


def make_unread(blocks: Iterable[BlockPass]) -> None:
    """Make the full grids that someone keeps and nothing has read so far."""
    for block in blocks:
        grid = None if block.unread is None else block.unread()
        if grid is not None:
            grid.become_full()
        block.unread = None


def in_a_graph(grid: UnreadGrid) -> bool:
    """Return whether a gradient flows through a grid: reentrant checkpointing makes it the output of a function."""
    with torch._C.DisableTorchFunctionSubclass():
        return grid.requires_grad


def may_wait(tokens: Tensor) -> bool:
    """Return whether the full grid of these tokens may be made later: no gradient, and nothing traces or transforms."""
    return (
        type(tokens) is Tensor
        and not tokens.requires_grad
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
    )
