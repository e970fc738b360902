"""How many patches merges leave when ``merge_to`` says it."""

HALF = {"clap_layer": 1, "gbm_layers": [3], "merge_to": 0.6}


def patches_kept(algm):
    """By block, of the last forward pass."""
    past = algm._past()
    prefix = algm.token_map.labels.shape[1] - past.grid[0] * past.grid[1]
    return [length - prefix for length in algm.tokens_per_layer]


def nearest(patches, share, windows, fewer=3):
    """What merging some of so many windows, each to so many patches fewer, leaves nearest to a share."""
    return min(
        (patches - fewer * merged for merged in range(windows + 1)), key=lambda kept: abs(kept - share * patches)
    )
