"""Wrapped models in training."""

from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from algm_patch.patching.find_vit import find_vit

SETTINGS: dict[str, Any] = {"gbm_layers": [2], "tau": 0.5}


def sharded(model, **options):
    mesh = init_device_mesh("cpu", (1,))
    for part in (*find_vit(model)[1].blocks, model):
        fully_shard(part, mesh=mesh, **options if part is not model else {})
    return model


def loss_of(x):
    return (x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum()


def trained(model, image):
    """Return the output and, by name, the gradient of each parameter that trains, gathered from its shards."""
    model.zero_grad()
    output = model(image)
    loss_of(output).backward()
    gathered = {
        name: parameter.grad.full_tensor() if hasattr(parameter, "full_tensor") else parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    return output.detach(), {
        ".".join(part for part in name.split(".") if part not in ADDED): gathered[name] for name in gathered
    }


ADDED = ("module", "_orig_mod", "base_model", "model")
