"""Builds the item table of a configuration, with the priors of its items."""

from __future__ import annotations

from logging import getLogger
from typing import Any

from torch import Tensor

from recbole_adarec.data.dataset import SequenceDataset, WindowDataset, item_counts
from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.item_table.adaptive import AdaptiveItemTable
from recbole_adarec.model.item_table.base import ItemTable
from recbole_adarec.model.item_table.budget import Blocks, cut_blocks, table_parameters
from recbole_adarec.model.item_table.full import FullItemTable

_LARGEST_OF_ONE_LEVEL = 50_000  # items


def build_item_table(config: Any, dataset: Any, n_items: int, size: int, limit: int | None = None) -> ItemTable:
    """The item table of a configuration.

    Parameters
    ----------
    config : recbole.config.Config
        ``item_table``, ``popularity_prior``, ``served_prior``, ``item_blocks``, ``item_block_growth``,
        ``item_widths``, ``item_width_factor``, ``item_codes``, ``item_levels``, ``item_output``.
    dataset : WindowDataset
        The training part, whose items are counted; a model that is rebuilt from its file has none.
    n_items, size : int
        I and C.
    limit : int, optional
        Parameters that an adaptive table should have at most, see `cut_blocks`; a warning is logged where none has so
        few.

    Raises
    ------
    AdaRecError
        If the blocks do not fit the catalog, or the dataset is not the training part alone.
    """
    if config["item_table"] != "adaptive":
        return full_table(config, dataset, n_items, size)
    blocks = cut_blocks(config, n_items - 1, size, limit)
    counts = _training_counts(dataset, n_items)
    tied = config["item_output"] == "tied"
    if limit is not None and counts is not None and (parameters := table_parameters(blocks, size, tied)) > limit:
        getLogger().warning(
            f"total_budget: it leaves {limit} parameters for the {n_items - 1} items, the item table has {parameters}: "
            "the model is above its budget; give a larger one, or share more layers"
        )
    priors = _priors(config, dataset, n_items)
    if _levels(config, n_items, size, blocks, tied) == 1:
        return FullItemTable(n_items, size, **priors, blocks=blocks, counts=counts)
    return AdaptiveItemTable(n_items, size, blocks, counts, tied, **priors)


def _levels(config: Any, n_items: int, size: int, blocks: Blocks, tied: bool) -> int:
    """Levels of the softmax of an adaptive table, 1 or 2: ``item_levels``, or what suits the catalog.

    Two levels cost less with many items, and the best items are found without scoring all; one level is more accurate.

    Notes
    -----
    Measured with a student of Beauty, test NDCG@10 of 0.0526 on two levels and 0.0539 on one; of ml-1m-tail 0.1267 and
    0.1317.
    """
    can_have_one = tied and set(blocks.widths) == {size}
    levels = config["item_levels"]
    if levels == 1 and not can_have_one:
        raise AdaRecError(
            f"item_levels: 1 is for rows of {size} channels that embed items and score them, these have "
            f"{list(blocks.widths)} and item_output is {config['item_output']}; give --item_levels=2, or codes instead "
            "of narrow rows"
        )
    if levels is not None:
        return int(levels)
    return 1 if can_have_one and n_items <= _LARGEST_OF_ONE_LEVEL else 2


def full_table(config: Any, dataset: Any, n_items: int, size: int, extra: int = 0) -> FullItemTable:
    """The full table of a configuration, with its priors; parameters as `build_item_table` and `FullItemTable`."""
    normalized = bool(config["normalize_items"])  # of teachers alone
    return FullItemTable(n_items, size, extra, **_priors(config, dataset, n_items), normalized=normalized)


def _priors(config: Any, dataset: Any, n_items: int) -> dict[str, Any]:
    """The arguments ``prior`` and ``served`` of an item table.

    Without a ``served_prior`` the prior scale is 1 until validation has chosen it.
    """
    served = 1.0 if config["served_prior"] is None else float(config["served_prior"])
    return {"prior": popularity_prior(config, dataset, n_items), "served": served}


def popularity_prior(config: Any, dataset: Any, n_items: int) -> Tensor | None:
    """The prior of each item: ``popularity_prior`` times ``log(count + 1)``, less its mean over the items, ``[I]``.

    None where that weight is 0, and for a model that is rebuilt from its file: its prior comes with the weights.

    Parameters
    ----------
    config, dataset, n_items
        As `build_item_table`.

    Raises
    ------
    AdaRecError
        If the dataset is not the training part alone.
    """
    counts, weight = _training_counts(dataset, n_items), config["popularity_prior"]
    if counts is None or not weight:
        return None
    prior = weight * (counts + 1).log()
    prior -= prior[1:].mean()
    prior[0] = 0
    return prior


def _training_counts(dataset: Any, n_items: int) -> Tensor | None:
    """Occurrences of each item in the training part, ``[I]``; None for a model that is rebuilt from its file."""
    if isinstance(dataset, SequenceDataset) and not isinstance(dataset, WindowDataset):
        raise AdaRecError(
            "popularity is counted in the training part alone; give the model train_data._dataset, not the whole "
            "dataset"
        )
    return item_counts(dataset, n_items) if isinstance(dataset, WindowDataset) else None
