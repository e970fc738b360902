"""Count the windows or proposals to merge, so that a share or a number of the patches is left."""

from __future__ import annotations


def windows_to_merge(patches_left: float | int, grid: tuple[int, int], window: tuple[int, int]) -> int:
    """Return how many windows of a grid leave nearest to ``patches_left`` of its patches: a share, or a number.

    Raises:
        ValueError: if that number is beyond what merging all windows, or none, leaves.
    """
    patches, windows = grid[0] * grid[1], (grid[0] // window[0]) * (grid[1] // window[1])
    fewer = window[0] * window[1] - 1
    left = number_left("CLAP", patches_left, patches - windows * fewer, patches)
    return min(round((patches - left) / fewer), windows)


def proposals_to_carry_out(patches_left: float | int, patches: int, candidates: int) -> int:
    """Return how many of GBM's proposals leave ``patches_left`` of so many patches: a share, or a number.

    Raises:
        ValueError: if there are not so many proposals.
    """
    return min(patches - number_left("GBM", patches_left, patches - candidates, patches), candidates)


def number_left(stage: str, patches_left: float | int, least: int, patches: int) -> int:
    """Return the number that a share of so many patches is, or the number itself, if the stage can leave so few."""
    if not isinstance(patches_left, int):
        return round(patches_left * patches)
    if not least <= patches_left <= patches:
        raise ValueError(
            f"merge_to asks {stage} to leave {patches_left} of {patches} patches: it can leave {least} to {patches}"
        )
    return patches_left
