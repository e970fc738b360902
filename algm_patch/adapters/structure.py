"""Define what an adapter has that holds for every block it is proved for, whatever the path of its forward."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .base import Adapter

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Structure(Adapter):
    """Describe blocks of one shape as two halves.

    It is tried on blocks that no adapter is registered for, and holds for those that it is proved for: see
    ``algm_patch.adapters.proof``. It need not say where the patch projection is, which is found by what it is.

    Attributes:
        prefix: so many of the first tokens the block itself tells from the patches, as those that it gives no rotary
            angles. The proof lets them stand.
        rounding: how much the halves may differ from the forward, of its largest number. More than the default only
            where the forward is known to sum in another order.
    """

    prefix: int = 0
    rounding: float = 2e-6

    @staticmethod
    def fits(block: Any) -> bool:
        """Return whether the block has the parts, and its forward the arguments, of this structure. Compute nothing."""
        raise NotImplementedError

    @staticmethod
    def examples(block: Any, tokens: int, prefix: int) -> Iterable[Call]:
        """Yield arguments of the block's forward after ``x``, each as (args, kwargs), on the CPU in float32.

        Args:
            block: the proof's own copy, with random weights.
            tokens: of each of two images, prefix and patches. The last three patches stand at one place: where
                arguments tell of places, they must tell the same of these three.
            prefix: how many of them stand before the patches.
        """
        yield (), {}
