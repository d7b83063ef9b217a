"""What a trained model loses when it reads less of the history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from recbole_adarec.evaluation.per_user import user_scores
from recbole_adarec.evaluation.profile import count_macs, timing_rows


def by_history_length(models: Mapping[str, Any], loader: Any, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Accuracy and cost of trained models that read the last n items of each history.

    Parameters
    ----------
    models : mapping of str to SequenceRecommender
        In evaluation mode, all on one device.
    loader : recbole.data.dataloader.FullSortEvalDataLoader
        Of the validation part.
    lengths : sequence of int
        n.

    Returns
    -------
    list of dict
        For each n ``length``, ``ndcg`` (NDCG@10) and ``macs`` (of scoring all items after a history of that length),
        the last two by model.
    """
    device = next(next(iter(models.values())).parameters()).device
    _, longest = timing_rows(loader._dataset, device)
    rows = []
    for length in lengths:
        cut = _CutHistories(loader, length)
        rows.append(
            {
                "length": length,
                "ndcg": {name: float(user_scores(model, cut).ndcg.mean()) for name, model in models.items()},
                "macs": {name: count_macs(model, cut.cut(longest)) for name, model in models.items()},
            }
        )
    return rows


class _CutHistories:
    """The batches of a loader with the last `length` items of each history."""

    def __init__(self, loader: Any, length: int) -> None:
        self._loader, self._length = loader, length
        self.dataset = loader.dataset

    def __iter__(self) -> Iterator[Any]:
        for interaction, *others in self._loader:
            yield self.cut(interaction), *others

    def cut(self, interaction: Any) -> Any:
        """An interaction with shorter histories, right-padded to the same width: some models need it."""
        dataset = self._loader._dataset
        list_field = getattr(dataset, f"{dataset.iid_field}_list_field")
        items, lengths = interaction[list_field], interaction[dataset.item_list_length_field]
        kept = lengths.clamp_max(self._length)
        position = torch.arange(items.shape[1], device=items.device)
        real = position < kept[:, None]
        index = torch.where(real, (lengths - kept)[:, None] + position, 0)
        cut = {list_field: items.gather(1, index) * real, dataset.item_list_length_field: kept}
        return type(interaction)({**interaction.interaction, **cut})
