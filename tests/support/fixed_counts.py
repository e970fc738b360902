"""How many patches merges leave when ``merge_to`` says it."""

from typing import Any

FIXED_COUNTS: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [3], "merge_to": 0.6}


def patches_left(algm):
    """Return how many patches each block of the last forward pass left."""
    past = algm.last_pass
    prefix = algm.token_map.labels.shape[1] - past.grid[0] * past.grid[1]
    return [length - prefix for length in algm.tokens_per_layer]


def nearest_count(patches, share, windows, fewer=3):
    """Return the number of patches nearest to a share of them that merging whole windows leaves.

    Args:
        windows: how many can merge.
        fewer: patches that each merged window leaves out.
    """
    return min(
        (patches - fewer * merged for merged in range(windows + 1)), key=lambda kept: abs(kept - share * patches)
    )
