"""Everything that a handle tells of a forward pass."""

import torch


def facts_of(model):
    """Return everything that the handle of a model tells of a forward pass."""
    algm = model.algm
    merged = algm.token_map.take(torch.arange(algm.token_map.labels.shape[1])[:, None])
    return (
        algm.token_map.labels.tolist(),
        algm.token_map.sizes.tolist(),
        algm.tokens_per_layer,
        algm.window_similarity.shape,
        algm.unmerge(merged).flatten().tolist(),
        str(algm),
        algm._repr_html_(),
    )
