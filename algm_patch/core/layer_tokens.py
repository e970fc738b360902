"""Tell a block's attention of its tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .caching import cached
from .packing import Packing
from .token_map import TokenMap


@dataclass(eq=False)
class LayerTokens:
    """Hold what a block's attention must know of the tokens it is given. Adapters receive one.

    Attributes:
        token_map: from the original tokens to those of the sequence; None while nothing is merged.
        key_bias: broadcastable to [B, heads, L, L], added to the attention logits: the log of each key's size (ToMe's
            proportional attention); None while nothing is merged or when it is off.
        num_prefix_tokens: those that stand before the patches.
        image: the tokens are this one image's, of a batch whose inputs of attention are given for all; None: the whole
            batch's.
    """

    token_map: TokenMap | None
    key_bias: Tensor | None
    num_prefix_tokens: int
    image: int | None = None

    @property
    def packing(self) -> Packing | None:
        """The packing of the images in one sequence [1, T, D]; None if they are a batch."""
        return None if self.token_map is None else self.token_map.packing

    def packed(self) -> LayerTokens:
        """Return the same tokens without weights, for attention that is told them and where an image ends elsewhere."""
        return replace(self, key_bias=None)

    def padded(self, dtype: torch.dtype) -> LayerTokens:
        """Return the same tokens, of this dtype, as a batch [B, M, D], to whose padding no one attends."""
        assert self.token_map is not None
        bias = self.key_bias
        if bias is None:
            bias = torch.where(self.token_map.sizes > 0, 0.0, -torch.inf)[:, None, None].to(dtype)
        return replace(self, token_map=TokenMap(self.token_map.labels, self.token_map.sizes), key_bias=bias)

    def of_image(self, image: int) -> LayerTokens:
        """Return the tokens of one image."""
        assert self.token_map is not None
        token_map = self.token_map.of_image(image)
        bias = None if self.key_bias is None else self.key_bias[image : image + 1, ..., : token_map.sizes.shape[1]]
        return LayerTokens(token_map, bias, self.num_prefix_tokens, image)

    def of_some_images(self, images: Tensor) -> LayerTokens:
        """Return the tokens of these images of a batch that is not packed."""
        token_map = self.token_map
        if token_map is not None:
            token_map = TokenMap(token_map.labels[images], token_map.sizes[images])
        bias = None if self.key_bias is None else self.key_bias[images]
        return replace(self, token_map=token_map, key_bias=bias)

    def take(self, x: Tensor) -> Tensor:
        """Return what belongs to the first member of each group, of what belongs to every token and has no mean.

        Args:
            x: [B, P+N, ...], or [1, P+N, ...] if the batch shares it, of all tokens.

        Returns:
            [B, P+M, ...], or [1, T, ...] if images are packed; ``x`` as it is while nothing is merged.
        """
        x = self.own(x)
        return x if self.token_map is None else self.token_map.pack(self.token_map.take(x))

    def own(self, x: Tensor) -> Tensor:
        """Return the part of ``x`` [B or 1, ...] that is of these tokens: one image's, if they are one image's."""
        return x[self.image : self.image + 1] if self.image is not None and x.shape[0] > 1 else x

    def average_patches(self, x: Tensor, batched: bool = False, neutral: Tensor | None = None) -> Tensor:
        """Average over each group what belongs to each patch, such as the sines and cosines of rotary angles.

        A key turned by the mean of its members' rotations gives the logits that the members' keys give on average.
        Measured against the first member's angles in benchmarks/evaluation/positions.py: closer to the unpatched model.

        Args:
            x: [..., N, D] of all patches without the prefix, the same for the whole batch; or [B, ..., N, D].
            batched: whether ``x`` has the batch.
            neutral: broadcastable to [D]; what belongs to no place. Only needed where images are packed, for the
                prefixes of all images but the first.

        Returns:
            [B, ..., M, D], or [1, ..., T - P, D] if images are packed; ``x`` as it is while nothing is merged.
        """
        if self._patches is None:
            return x
        x = self.own(x) if batched else x.expand(self._patches.labels.shape[0], *x.shape)
        averages = self._patches.merge(x.movedim(-2, 1))
        if self.packing is not None:
            assert neutral is not None
            prefix = neutral.expand(averages[:, :1].shape).expand(-1, self.num_prefix_tokens, *averages.shape[2:])
            averages = self.packing.pack(torch.cat([prefix, averages], 1))[:, self.num_prefix_tokens :]
        return averages.movedim(1, -2)

    @cached
    def _patches(self) -> TokenMap | None:
        return None if self.token_map is None else self.token_map.without_prefix(self.num_prefix_tokens)

    def attention_mask(self, mask: Tensor | None) -> Tensor | None:
        """Return the caller's mask [..., P+N, P+N], bool or additive, plus the key bias; None without either."""
        if mask is None:
            return self.key_bias
        mask = self.pair(mask)
        if self.key_bias is None:
            return mask
        if mask.dtype == torch.bool:
            return self.key_bias.masked_fill(~mask, -torch.inf)
        return mask + self.key_bias

    def pair(self, mask: Tensor) -> Tensor:
        """Return the part of a mask [..., P+N, P+N] of all tokens that is of the tokens that are left."""
        mask = self.own(mask) if mask.dim() == 4 else mask
        return mask if self.token_map is None else self.token_map.pair(mask)

    def plus(self, bias: Tensor) -> LayerTokens:
        """Return the same tokens with a further bias [B, heads, P+M, P+M] for those that are left."""
        return replace(self, key_bias=bias if self.key_bias is None else bias + self.key_bias)
