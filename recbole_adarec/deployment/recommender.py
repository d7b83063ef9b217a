"""Scores and ranks items for item histories with a stored student or teacher; no dataset is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.item_table.base import TopK
from recbole_adarec.model.stored import build_model
from recbole_adarec.model.teachers.base import AdaRecTeacher
from recbole_adarec.storage.model_files import load_state


class Recommender:
    """Scores and ranks items for histories of item tokens.

    Parameters
    ----------
    model : AdaRecStudent, AdaRecTeacher or CpRec
        In evaluation mode.
    item_tokens : list of str
        The token of each item id in the dataset; id 0 is padding.

    Attributes
    ----------
    item_ids : dict of str to int
        The id of each token.
    name : str
        ``teacher`` or ``student``, for messages.
    """

    def __init__(self, model: Any, item_tokens: Sequence[str]) -> None:
        self.model = model
        self.item_tokens = list(item_tokens)
        self.item_ids = {token: index for index, token in enumerate(self.item_tokens)}
        self.name = "teacher" if isinstance(model, AdaRecTeacher) else "student"

    def _item_seq(self, history: Sequence[str | int]) -> Tensor:
        """Ids of the last ``MAX_ITEM_LIST_LENGTH`` items of a history, int64 ``[1, L]``."""
        if isinstance(history, str) or not history:
            raise AdaRecError(f"history is {history!r}, expected a list of one or more item tokens")
        ids = []
        for token in history:
            index = self.item_ids.get(str(token), 0)
            if index == 0:
                raise AdaRecError(
                    f"history: unknown item {str(token)!r}; this {self.name} knows {len(self.item_ids) - 1} items"
                )
            ids.append(index)
        return torch.tensor([ids[-self.model.max_seq_length :]])

    @torch.no_grad()
    def scores(self, histories: Sequence[Sequence[str | int]]) -> Tensor:
        """Scores of all items as the next one after each history.

        Parameters
        ----------
        histories : sequence of sequences of str
            B histories: item tokens as the dataset writes them, oldest first.

        Returns
        -------
        Tensor
            ``[B, I]``, in the order of `item_tokens`; the padding item has minus infinity.

        Raises
        ------
        AdaRecError
            If a history is empty or names an item that the model does not know.
        """
        if isinstance(histories, str) or not histories:
            raise AdaRecError("histories is empty, expected a list of histories")
        rows = [self._item_seq(history)[0] for history in histories]
        lengths = torch.tensor([len(row) for row in rows])
        device = next(self.model.parameters()).device
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        scores = self.model.scores(padded, lengths.to(device))
        scores[:, 0] = -torch.inf
        return scores

    @torch.inference_mode()  # `scores` and `top_k` return tensors, which callers could not change under it
    def recommend(self, history: Sequence[str | int], k: int = 10) -> list[tuple[str, float]]:
        """The k items with the highest scores after a history.

        The ranking is exact; with an adaptive item table, blocks that cannot hold one of the k items are not scored.
        Items of the history are ranked lower where users rarely repeat an item (`repeat_bias`).

        Parameters
        ----------
        history : sequence of str
            Item tokens as the dataset writes them, oldest first.
        k : int
            Number of items.

        Returns
        -------
        list of (str, float)
            Tokens and scores, the best item first.

        Raises
        ------
        AdaRecError
            If the history is empty or names an item that the model does not know, or there are not k items.
        """
        top = self.top_k(history, k)
        return [(self.item_tokens[i], s) for i, s in zip(top.items[0].tolist(), top.scores[0].tolist(), strict=True)]

    @torch.no_grad()
    def top_k(self, history: Sequence[str | int], k: int = 10) -> TopK:
        """The k best items as ids and scores ``[1, k]``, and the share of the catalog that was scored.

        Parameters and errors are those of `recommend`.
        """
        if not 1 <= k < len(self.item_tokens):
            raise AdaRecError(f"k is {k}, expected 1 to {len(self.item_tokens) - 1}")
        row = self._item_seq(history).to(next(self.model.parameters()).device)
        return self.model.top_k(row, torch.tensor([row.shape[1]], device=row.device), k)


def load_student(run_dir: str | Path, device: torch.device | str = "cpu") -> Recommender:
    """The trained student of a run; no dataset file is read.

    Parameters
    ----------
    run_dir : path-like
        Folder of a finished run, or the path of a student.pth or of the cprec.pth of a `CpRec`.
    device : torch.device or str
        Device of the model.

    Raises
    ------
    AdaRecError
        If there is no student, or its file is damaged or holds something else.
    """
    return _load_model(run_dir, device, "student", ("AdaRecStudent", "CpRec"))


def load_teacher(run_dir: str | Path, device: torch.device | str = "cpu") -> Recommender:
    """The trained teacher of a run; no dataset file is read.

    A model of RecBole that has user embeddings, as Caser, scores every history as that of an unknown user.

    Parameters
    ----------
    run_dir : path-like
        Folder of a run, or the path of a teacher.pth.
    device : torch.device or str
        Device of the model.

    Raises
    ------
    AdaRecError
        If there is no teacher, or its file is damaged or holds something else.
    """
    return _load_model(run_dir, device, "teacher", ("AdaRecTeacher",))


def _load_model(run_dir: str | Path, device: torch.device | str, name: str, expected: tuple[str, ...]) -> Recommender:
    path = Path(run_dir)
    path = path / f"{name}.pth" if path.is_dir() else path
    content = load_state(path, device, expected=expected)
    return Recommender(build_model(content, device), content["item_tokens"])
