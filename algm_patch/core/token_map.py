"""Map original tokens to the merged tokens that hold them: one integer each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .caching import cached
from .compiling import exports, read_numbers
from .matching import first_members
from .packing import Packing


@dataclass(eq=False)
class TokenMap:
    """Hold a partition of a sequence's tokens into groups, and the way there and back.

    O(N) memory: one label per original token (ALGORITHM: "Bookkeeping and unmerge").

    Args:
        labels: [B, P+N] int64; ``labels[b, n]`` is the position, in the merged sequence, of the
            token that holds original token ``n``. Prefix tokens are counted.
        sizes: [B, P+M]; how many original tokens each merged token holds. Where images hold different numbers of
            tokens, M is the largest, and an image's sizes are zero past its own.
        packing: how the images' merged tokens form one sequence, where they hold different numbers.

    Raises:
        ValueError: if the two are not matrices of the same batch, or the labels not int64.

    Examples:
        >>> tokens = torch.tensor([[[1.0], [3.0], [5.0]]])
        >>> pair = TokenMap(labels=torch.tensor([[0, 0, 1]]), sizes=torch.tensor([[2.0, 1.0]]))
        >>> pair.merge(tokens)
        tensor([[[2.],
                 [5.]]])
        >>> pair.unmerge(pair.merge(tokens)).flatten()
        tensor([2., 2., 5.])
    """

    labels: Tensor
    sizes: Tensor
    packing: Packing | None = None

    def __post_init__(self) -> None:
        if self.labels.dim() != 2 or self.sizes.dim() != 2 or self.labels.shape[0] != self.sizes.shape[0]:
            raise ValueError(
                "TokenMap expects labels [B, P+N] and sizes [B, P+M], got "
                f"labels {list(self.labels.shape)} and sizes {list(self.sizes.shape)}"
            )
        if self.labels.dtype != torch.int64:
            raise ValueError(f"TokenMap expects int64 labels, got {self.labels.dtype}")
        # (B, M), or (1, T) of the one sequence in which images of different lengths are packed.
        self.shape = (self.sizes.shape[0], self.sizes.shape[1]) if self.packing is None else (1, self.packing.total)

    @classmethod
    def identity(cls, batch: int, length: int, device: torch.device | None = None) -> TokenMap:
        """Return the map that merges nothing: every token its own group."""
        labels = torch.arange(length, device=device).expand(batch, length)
        return cls(labels, torch.ones(batch, length, device=device))

    @classmethod
    def from_leaders(
        cls, leaders: Tensor, sizes: Tensor, count: int | None = None, *, least: int = 0, packed: bool = False
    ) -> TokenMap:
        """Return the map of one merge: from the tokens of a sequence to their groups, in order of first members.

        Args:
            leaders: [B, L]; the position of the first token of each token's group.
            sizes: [B, L]; how many original tokens each token of the sequence holds already; zero, if packed: padding.
            count: of groups, the same in every row. None: it is read from the device, the only host synchronisation
                of a merge.
            least: a count that no row is below, for compilers, which do not know the count.
            packed: the rows have different numbers of groups.
        """
        batch, length = leaders.shape
        leads, compiling = leaders == torch.arange(length, device=leaders.device), torch.compiler.is_compiling()
        dtype = torch.float32 if compiling and exports() else torch.int64  # exact below 2^24; TensorRT sums no int64
        groups = (leads & (sizes > 0) if packed else leads).cumsum(1, dtype=dtype)
        labels = (groups - 1).gather(1, leaders).long()
        counts = groups[:, -1].long() if length else groups.sum(1)
        packing = None
        if packed:
            packing = Packing.traced(counts) if compiling else Packing.read(counts)
            count, packing = packing.longest, None if packing.even else packing
        elif count is None:
            read = read_numbers if compiling else Tensor.tolist
            (count,) = read(counts[:1]) or [length]  # an empty batch merges nothing
        if compiling:
            torch._check(count >= 2)  # which it knows not to be a dimension that broadcasts
            torch._check(count >= least)
            torch._check(count <= length)
        return cls(labels, sizes.new_zeros(batch, count).scatter_add_(1, labels, sizes), packing)

    def then(self, step: TokenMap) -> TokenMap:
        """Return this map followed by a merge of its merged tokens: from original tokens to those that it leaves."""
        return TokenMap(step.labels.gather(1, self.labels), step.sizes, step.packing)

    def with_prefix(self, count: int) -> TokenMap:
        """Return this map with so many more tokens before all others, each its own group."""
        added = TokenMap.identity(self.labels.shape[0], count, self.labels.device)
        return TokenMap(
            torch.cat([added.labels, self.labels + count], 1),
            torch.cat([added.sizes.to(self.sizes), self.sizes], 1),
            self.packing and self.packing.widened(count),
        )

    def without_prefix(self, count: int) -> TokenMap:
        """Return this map of the tokens behind the first so many, which are each their own group."""
        return TokenMap(
            self.labels[:, count:] - count, self.sizes[:, count:], self.packing and self.packing.widened(-count)
        )

    def of_image(self, image: int) -> TokenMap:
        """Return the map of one image of the batch, without padding."""
        count = self.sizes.shape[1] if self.packing is None else self.packing.numbers[image]
        return TokenMap(self.labels[image : image + 1], self.sizes[image : image + 1, :count])

    def pack(self, x: Tensor) -> Tensor:
        """Return merged tokens [B, P+M, ...] as blocks take them: packed, where the images hold different numbers."""
        return x if self.packing is None else self.packing.pack(x)

    def unpack(self, x: Tensor) -> Tensor:
        """Undo `pack`: return [B, P+M, ...], zero past an image's own tokens."""
        return x if self.packing is None else self.packing.unpack(x)

    def merge(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Return each group's mean. A token alone in its group passes through bit for bit.

        Half-precision tokens are summed in float32.

        Args:
            x: [B, P+N, ...].
            sizes: [B, P+N]; the weight of each token in the mean. Default: every token weighs 1.

        Returns:
            [B, P+M, ...], in the dtype of ``x``; zero past an image's own tokens.

        Raises:
            ValueError: if ``x`` is not of these tokens, or holds whole numbers, which the mean would cut off.
        """
        if x.shape[:2] != self.labels.shape:
            raise self._wrong_tokens(x, self.labels, "merge")
        if not (x.is_floating_point() or x.is_complex()):
            raise ValueError(
                f"TokenMap.merge averages each group, and {x.dtype} cannot hold a mean. Pass x.float(), or use "
                "TokenMap.take(x) for the first member of each group"
            )
        batch, count = self.sizes.shape
        totals = self.sizes.to(torch.promote_types(x.dtype, torch.float32))
        weights = (1 if sizes is None else sizes.to(totals)) / totals.gather(1, self.labels)
        weighted = x.reshape(batch, x.shape[1], x.shape[2:].numel()) * weights[..., None]
        sums = weighted.new_zeros(batch, count, weighted.shape[-1])
        if torch.compiler.is_compiling() and exports():  # ONNX's index_add has indices twice, which engines do not take
            sums = sums.scatter_add(1, self.labels[..., None].expand_as(weighted), weighted)
        else:  # in place, 20 times faster on CPU
            sums.flatten(0, 1).index_add_(0, self._flat_labels, weighted.flatten(0, 1))
        return sums.to(x.dtype).view(batch, count, *x.shape[2:])

    def unmerge(self, x: Tensor) -> Tensor:
        """Give every original token a copy of the merged token that holds it.

        Args:
            x: [B, P+M, ...].

        Returns:
            [B, P+N, ...].
        """
        if x.shape[:2] != self.sizes.shape:
            raise self._wrong_tokens(x, self.sizes, "unmerge")
        flat = x.flatten(0, 1).index_select(0, self._flat_labels)
        return flat.view(*self.labels.shape, *x.shape[2:])

    def take(self, x: Tensor) -> Tensor:
        """Return each group's first member, for per-token inputs that cannot be averaged, such as positions.

        Args:
            x: [B, P+N, ...], or [1, P+N, ...] or [P+N, ...] if the batch shares it.

        Returns:
            [B, P+M, ...]; past an image's own tokens, copies of its last.
        """
        batch, length = self.labels.shape
        given = x.dim() > 1 and x.shape[1] == length and (x.shape[0] == batch or x.shape[0] == 1)
        if not given and x.shape[:1] == (length,):
            x = x[None]
        if x.shape[:2] == (1, length):
            x = x.expand(batch, *x.shape[1:])
        if x.shape[:2] != self.labels.shape:
            raise self._wrong_tokens(x, self.labels, "take")
        flat = x.flatten(0, 1).index_select(0, offset_by_image(self.first, length).flatten())
        return flat.view(*self.sizes.shape, *x.shape[2:])

    def pair(self, x: Tensor) -> Tensor:
        """Return each pair of groups' first members, for inputs of attention: masks, relative position biases.

        Args:
            x: [..., P+N, P+N], broadcastable to [B, heads, P+N, P+N]; a query dimension of 1 stays 1.

        Returns:
            [B, heads or 1, P+M or 1, P+M].
        """
        length = self.labels.shape[1]
        if not 2 <= x.dim() <= 4 or x.shape[-1] != length or x.shape[-2] not in (1, length):
            raise ValueError(
                f"TokenMap.pair expects [..., {length} or 1, {length}] of at most 4 dimensions, got {list(x.shape)}"
            )
        x = x.reshape(*[1] * (4 - x.dim()), *x.shape)
        batch = self.sizes.shape[0]
        if x.shape[0] not in (1, batch):
            raise ValueError(f"TokenMap.pair expects a batch of 1 or {batch}, got {list(x.shape)}")
        rows = self.first if x.shape[2] == length else self.first.new_zeros(batch, 1)
        pairs = rows[:, :, None] * length + self.first[:, None]
        if x.shape[0] > 1:
            pairs = pairs + torch.arange(batch, device=x.device)[:, None, None] * x.shape[2] * length
        # One flat index for all heads: 9 times faster on CPU than a gather along either dimension.
        flat = x.transpose(0, 1).flatten(1).index_select(1, pairs.flatten())
        return flat.view(-1, *pairs.shape).transpose(0, 1)

    @property
    def key_bias(self) -> Tensor:
        """[B, 1, 1, P+M]: the logarithm of the sizes, which proportional attention adds to the logits of each key.

        Minus infinity past an image's own tokens: no one attends to those.
        """
        return self.sizes.log()[:, None, None]

    @cached
    def first(self) -> Tensor:
        """[B, P+M]: the position of each group's first member among the original tokens."""
        return first_members(self.labels, self.sizes.shape[1])

    @cached
    def _flat_labels(self) -> Tensor:
        return offset_by_image(self.labels, self.sizes.shape[1]).flatten()

    def _wrong_tokens(self, x: Tensor, tokens: Tensor, verb: str) -> ValueError:
        """Return the error of tokens that are not those of this map."""
        expected = ", ".join(map(str, tokens.shape))
        return ValueError(f"TokenMap.{verb} expects [{expected}, ...], got {list(x.shape)}")


def offset_by_image(positions: Tensor, length: int) -> Tensor:
    """Return positions [B, ...] in images of this length as positions in all images, one after the other."""
    batch = positions.shape[0]
    if batch == 1:
        return positions
    offset = torch.arange(batch, device=positions.device) * length
    return positions + offset.view(-1, *[1] * (positions.dim() - 1))
