"""Selects positions of a batch of sequences, ``[B, L, C]`` to ``[N, C]``."""

from __future__ import annotations

from torch import Tensor


def nonzero_positions(positions: Tensor) -> Tensor:
    """Where a bool mask ``[B, L]`` holds, as indices of the B L positions in a row, int64 ``[N]``.

    On a GPU this waits for all that was queued, so it is asked for once, and not for each of many tensors.
    """
    return positions.flatten().nonzero().squeeze(1)


def select_positions(hidden: Tensor, rows: Tensor) -> Tensor:
    """Positions of ``[B, L, C]`` that `nonzero_positions` gave, ``[N, C]``; faster than indexing by the mask."""
    flat = hidden.flatten(0, 1)
    return flat if len(rows) == len(flat) else flat.index_select(0, rows)
