"""Known blocks with one change each, which looks like nothing and is another function."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.plain_parts import DIM

# Makes of a class of blocks that of its mutants.
Mutation = Callable[[Any], Any]


def joining(forward: Callable[[Any, Tensor], Tensor]) -> Mutation:
    """Return the mutation that joins the branches of a block in another way."""
    return lambda base: type(f"Joined{base.__name__}", (base,), {"forward": lambda self, x: forward(self, x)})


def changing(**parts: Callable[[Any], Any]) -> Mutation:
    """Return the mutation that has others in the place of some parts, each made of the one that was there."""

    def mutate(base: Any) -> Any:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            base.__init__(self, *args, **kwargs)
            for names, make in parts.items():
                name = next((name for name in names.split("_or_") if hasattr(self, name)), None)
                if name is not None:
                    setattr(self, name, make(getattr(self, name)))

        return type(f"Changed{base.__name__}", (base,), {"__init__": __init__})

    return mutate


def with_parts(make: Callable[[], dict[str, Any]], forward: Callable[[Any, Tensor], Tensor]) -> Mutation:
    """Return the mutation that has further parts, and joins the branches with them."""

    def mutate(base: Any) -> Any:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            base.__init__(self, *args, **kwargs)
            for name, part in make().items():
                setattr(self, name, part)

        return type(
            f"More{base.__name__}", (base,), {"__init__": __init__, "forward": lambda self, x: forward(self, x)}
        )

    return mutate


class Around(nn.Module):
    """A part that is called in the place of another, with something done before or behind it."""

    def __init__(self, part: nn.Module, before: Any = None, behind: Any = None) -> None:
        super().__init__()
        self.part, self.before, self.behind = part, before, behind

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        x = x if self.before is None else self.before(x)
        y = self.part(x, *([x] * len(args)), **kwargs)
        if self.behind is None:
            return y
        return (self.behind(y[0]), *y[1:]) if isinstance(y, tuple) else self.behind(y)


def around(before: Any = None, behind: Any = None) -> Callable[[nn.Module], nn.Module]:
    return lambda part: Around(part, before, behind)


class Mixing(nn.Module):
    """Convolve neighbours in the sequence, channel by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(DIM, DIM, 3, padding=1, groups=DIM)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x.mT).mT


def shared_norm(block: Any) -> None:
    block.norm2 = block.norm1


def parallel(self: Any, x: Tensor) -> Tensor:
    return x + self.attend(self.norm1(x)) + self.feed(self.norm2(x))


def halves(self: Any, x: Tensor, between: Callable[[Tensor], Tensor]) -> Tensor:
    x = between(x + self.attend(self.norm1(x)))
    return x + self.feed(self.norm2(x))


def post_norm(self: Any, x: Tensor) -> Tensor:
    x = self.norm1(x + self.attend(x))
    return self.norm2(x + self.feed(x))


def behind_branches(self: Any, x: Tensor) -> Tensor:
    x = x + self.norm1(self.attend(x))
    return x + self.norm2(self.feed(x))


def gated(self: Any, x: Tensor) -> Tensor:
    x = x + x.mean(-1, keepdim=True).sigmoid() * self.attend(self.norm1(x))
    return x + self.feed(self.norm2(x))


def noisy(self: Any, x: Tensor) -> Tensor:
    return halves(self, x, lambda x: x + torch.randn_like(x) if self.training else x)


def scaled_residual(self: Any, x: Tensor) -> Tensor:
    x = 0.9 * x + self.attend(self.norm1(x))
    return x + self.feed(self.norm2(x))


def one_norm(self: Any, x: Tensor) -> Tensor:
    x = x + self.attend(self.norm1(x))
    return x + self.feed(self.norm1(x))


def one_norm_once(self: Any, x: Tensor) -> Tensor:
    y = self.norm1(x)
    return x + self.attend(y) + self.feed(self.norm2(y))


def from_before(self: Any, x: Tensor) -> Tensor:
    return halves(self, x, lambda y: y + 0.5 * x)


def other_order(self: Any, x: Tensor) -> Tensor:
    x = x + self.feed(self.norm2(x))
    return x + self.attend(self.norm1(x))


def twice(self: Any, x: Tensor) -> Tensor:
    for _ in range(2):
        x = halves(self, x, lambda x: x)
    return x


def no_depth_in_mlp(self: Any, x: Tensor) -> Tensor:
    x = x + self.attend(self.norm1(x))
    training = self.training
    y = self.norm2(x)
    self.train(False)
    y = self.feed(y)
    self.train(training)
    return x + y


JOINED: dict[str, Mutation] = {
    "post-norm": joining(post_norm),
    "norms behind the branches": joining(behind_branches),
    "a gate": joining(gated),
    "a shift between the halves": joining(partial(halves, between=lambda x: x.roll(1, 1))),
    "channels shifted between the halves": joining(partial(halves, between=lambda x: x + 0.01)),
    "a mean subtracted over tokens": joining(partial(halves, between=lambda x: x - x.mean(1, keepdim=True))),
    "a mean subtracted over the batch": joining(partial(halves, between=lambda x: x - x.mean(0, keepdim=True))),
    "normalised over tokens": joining(partial(halves, between=lambda x: x / x.std(1, keepdim=True))),
    "the residual scaled": joining(scaled_residual),
    "one norm for both": joining(one_norm),
    "the norm behind the norm": joining(one_norm_once),
    "a second residual from before attention": joining(from_before),
    "parallel branches": joining(parallel),
    "the MLP first": joining(other_order),
    "both branches twice": joining(twice),
    "noise in training": joining(noisy),
    "dropout behind the residual": with_parts(
        lambda: {"extra": nn.Dropout(0.1)}, lambda self, x: halves(self, x, self.extra)
    ),
    "a mean hidden by a scale of 1e-5": with_parts(
        lambda: {"gamma": nn.Parameter(torch.full((DIM,), 1e-5))},
        lambda self, x: halves(self, x, lambda x: x + self.gamma * x.mean(1, keepdim=True)),
    ),
    "a gate that starts at zero": with_parts(
        lambda: {"alpha": nn.Parameter(torch.zeros(()))},
        lambda self, x: halves(self, x, lambda x: x + self.alpha * x.roll(1, 1)),
    ),
    "batch norm between the halves": with_parts(
        lambda: {"bn": nn.BatchNorm1d(DIM)}, lambda self, x: halves(self, x, lambda x: self.bn(x.mT).mT)
    ),
    "a learned token for each place": with_parts(
        lambda: {"places": nn.Parameter(torch.zeros(1, 512, DIM))},
        lambda self, x: halves(self, x, lambda x: x + self.places[:, : x.shape[1]]),
    ),
}
INSIDE: dict[str, Mutation] = {
    "depthwise convolution in the MLP": changing(mlp_or_ffn_or_linear1=around(Mixing())),
    "token mixing in the MLP": changing(mlp_or_ffn_or_linear1=around(lambda x: x + x.mean(1, keepdim=True))),
    "channel attention in the MLP": changing(
        mlp_or_ffn_or_linear1=around(behind=lambda y: y * y.mean(1, keepdim=True).sigmoid())
    ),
    "tokens shifted before the MLP": changing(mlp_or_ffn_or_linear1=around(lambda x: x.roll(1, 1))),
    "a norm over tokens": changing(norm2=lambda norm: around(lambda x: x / x.norm(dim=1, keepdim=True))(norm)),
    "positions in the norm": changing(
        norm1=around(lambda x: x * torch.arange(1, x.shape[1] + 1)[:, None].expand_as(x) ** torch.arange(DIM))
    ),
    "the first token in the MLP": changing(mlp_or_ffn_or_linear1=around(lambda x: x + x[:, :1])),
    "the largest number of all tokens in a norm": changing(
        norm2=around(behind=lambda y: y / (1 + y.abs().amax((1, 2), keepdim=True)))
    ),
    "tokens above the mean in the MLP": changing(
        mlp_or_ffn_or_linear1=around(lambda x: x * (x[..., :1] > x[..., :1].mean(1, keepdim=True)))
    ),
    "batch norm": changing(
        norm2=lambda norm: around(lambda x: nn.BatchNorm1d(DIM, track_running_stats=False)(x.mT).mT)(norm)
    ),
}
FIRST_IN_NORM = changing(norm1=around(behind=lambda y: y - 0.5 * y[:, :1]))
# What the halves call, or do, as it is.
HARMLESS: dict[str, Mutation] = {
    "a gate on what attention returns": changing(attn_or_self_attn=around(behind=lambda y: y * y.sigmoid())),
    "attention maps asked for": joining(lambda self, x: with_maps(self, x)),
    "the residual added in place": joining(lambda self, x: in_place(self, x)),
}
DEPTH: dict[str, Mutation] = {"no stochastic depth in the MLP": joining(no_depth_in_mlp)}


def with_maps(self: Any, x: Tensor) -> Tensor:
    y = self.norm1(x)
    multihead = isinstance(getattr(self, "self_attn", None), nn.MultiheadAttention)
    x = x + (self.dropout(self.self_attn(y, y, y)[0]) if multihead else self.attend(y))
    return x + self.feed(self.norm2(x))


def in_place(self: Any, x: Tensor) -> Tensor:
    x += self.attend(self.norm1(x))
    x += self.feed(self.norm2(x))
    return x
