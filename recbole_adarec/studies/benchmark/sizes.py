"""How much a benchmark measures: `FULL`, or `QUICK` for a first look."""

from __future__ import annotations

from typing import NamedTuple

# Interactions and items of the synthetic datasets.
_GRID = (10**5, 10**4), (10**6, 10**4), (10**7, 10**4), (10**6, 10**3), (10**6, 10**5), (10**6, 10**6)


class Sizes(NamedTuple):
    """How many steps, batches and requests are measured.

    Attributes
    ----------
    turns : int
        Part ``teacher``: turns of this package and of RecBole.
    recbole_rows : int
        Part ``teacher``: rows of a RecBole batch; 2048 is RecBole's ``train_batch_size``.
    our_batches : int
        Part ``teacher``: batches of a turn of this package.
    search_steps : int
        Part ``search``: steps timed as a whole, and as many timed by their parts.
    epoch_steps : int
        Part ``search``: steps from which the time of an epoch is estimated.
    rounds : int
        Part ``inference``: rounds.
    requests : int, optional
        Part ``inference``: requests of a round; ``latency_repeats`` by default.
    cells : tuple of (int, int)
        Part ``growth``: interactions and items of each synthetic dataset.
    growth_steps, growth_seconds : int
        Part ``growth``: steps of each stage; after that many seconds three steps are enough.
    catalog, rankings : int
        Part ``ranking``: items and requests.
    """

    turns: int = 5
    recbole_rows: int = 2048
    our_batches: int = 16
    search_steps: int = 30
    epoch_steps: int = 40
    rounds: int = 5
    requests: int | None = None
    cells: tuple[tuple[int, int], ...] = _GRID
    growth_steps: int = 30
    growth_seconds: int = 60
    catalog: int = 10**6
    rankings: int = 50


FULL = Sizes()
QUICK = Sizes(2, 64, 4, 3, 6, 2, 20, ((20_000, 1_000), (100_000, 1_000), (20_000, 10_000)), 5, 3, 10**5, 10)
