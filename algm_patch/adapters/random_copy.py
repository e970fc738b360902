"""Copy a block with random weights, to be run at will: nothing of the user's is touched."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .instance_forward import BRINGING, brings_weights
from .proof_key import is_hooks
from .unpatched import unpatched

# Weights repeat after so many numbers, a prime: a large matrix of independent ones would take longer than all else.
PERIOD = 65537


def random_copy(block: nn.Module) -> nn.Module:
    """Return a copy of a block: unpatched, without hooks, in eval mode, its tensors on the CPU in float32.

    Parameters are random and none is near zero for long: layer scales of 1e-5 would hide what a block does. Buffers
    keep their values.

    Raises:
        ValueError: if a parameter or buffer has no numbers that could be copied.
    """
    plain = object.__new__(unpatched(type(block)))
    hidden = {"algm_part", "forward", "_compiled_call_impl"}
    plain.__dict__.update({name: value for name, value in vars(block).items() if name not in hidden})
    copies: dict[int, Any] = {}
    for name, buffer in block.named_buffers():
        copies[id(buffer)] = on_cpu(name, buffer)
    for part in block.modules():
        if brings_weights(part):
            copies |= {id(vars(part)[name]): None for name in BRINGING}
        for name, value in vars(part).items():
            if is_hooks(name):  # they may hold anything, such as the whole model
                copies[id(value)] = OrderedDict()
            elif isinstance(value, Tensor):
                copies[id(value)] = on_cpu(name, value)
    copies |= {id(parameter): weight for parameter, weight in random_weights(dict(block.named_parameters()))}
    copied = copy.deepcopy(plain, copies)
    for part in copied.modules():
        if vars(part).get("_hf_hook", part) is None:
            for name in BRINGING & vars(part).keys():
                delattr(part, name)
    return copied.eval()


def on_cpu(name: str, x: Tensor) -> Tensor:
    """Return a copy of a buffer; floating point in float32, with ones where weights are still to fill in numbers."""
    if x.is_meta:
        raise ValueError(f"its buffer {name} is on the meta device and has no values")
    x = x.detach()
    if not x.is_floating_point():
        return x.to("cpu", copy=True)
    x = x.to("cpu", torch.float32, copy=True)
    return x.masked_fill_(x.isnan(), 1)


def random_weights(parameters: dict[str, nn.Parameter]) -> Iterable[tuple[nn.Parameter, nn.Parameter]]:
    """Yield each parameter with a random one of its shape: matrices keep the size of what they multiply."""
    for name, parameter in parameters.items():
        if not parameter.is_floating_point():
            raise ValueError(f"its parameter {name} is of {parameter.dtype}")
    generator = torch.Generator("cpu").manual_seed(0)
    fans = {name: fan_in(parameter) for name, parameter in parameters.items() if not is_vector(parameter)}
    usual = max(fans.values(), default=1)
    longest = max((parameter.numel() for parameter in parameters.values()), default=0)
    numbers = normal((PERIOD,), generator).mul_(usual**-0.5).repeat(longest // PERIOD + 2)
    for index, (name, parameter) in enumerate(parameters.items()):
        if is_vector(parameter):
            weight = 0.3 * normal(parameter.shape, generator) + (0 if name.endswith("bias") else 1)
        else:
            start = index * 7919 % PERIOD
            weight = numbers[start : start + parameter.numel()].view(parameter.shape)
            if fans[name] * 8 < usual:  # else copying costs more than it gives
                weight = weight * math.sqrt(usual / fans[name])
        yield parameter, nn.Parameter(weight)


def is_vector(x: Tensor) -> bool:
    """Return whether a parameter has one number for each channel, or one alone."""
    return x.dim() < 2 or x.numel() == max(x.shape)


def fan_in(x: Tensor) -> int:
    """Return how many numbers are summed in each that a matrix leaves."""
    return max(x.numel() // max(x.shape[0], 1), 1)


def normal(shape: Iterable[int], generator: torch.Generator) -> Tensor:
    """Return normal numbers, whatever the default device and dtype are."""
    return torch.randn(tuple(shape), generator=generator, device="cpu", dtype=torch.float32)
