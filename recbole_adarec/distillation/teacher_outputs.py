"""Teacher outputs, computed once per window and reused in every epoch of search and student."""

from __future__ import annotations

from logging import getLogger
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recbole_adarec.data.dataset import WINDOW_FIELD, WindowDataset
from recbole_adarec.distillation.layer_mapping import LayerDistance
from recbole_adarec.losses.adaptive_softmax import TeacherBlocks, block_scores
from recbole_adarec.losses.full_softmax import TeacherSoftmax
from recbole_adarec.model.item_table.adaptive import AdaptiveItemTable
from recbole_adarec.model.item_table.base import ItemTable, append_ones
from recbole_adarec.model.positions import nonzero_positions
from recbole_adarec.model.seen_items import seen_items
from recbole_adarec.model.teachers.base import AdaRecTeacher


class TeacherTargets(NamedTuple):
    """What the teacher has to say of a batch, at the N positions where it may teach.

    Attributes
    ----------
    rows : Tensor
        Those positions, as `nonzero_positions` gives them, int64 ``[N]``.
    every_position : bool
        Whether they are all that are not padding.
    embedding : Tensor
        ``[N, C]``; in a stock model of RecBole embedding, layers and output may each have another C.
    layers : Tensor
        ``[T, N, C]``, as `LayerDistance.prepare` leaves them; T may be 0.
    terms : Tensor
        ``[T, N]``, likewise.
    output : Tensor
        ``[N, C]``, scored by the teacher's item table.
    softmax : TeacherSoftmax or TeacherBlocks, optional
        What that scoring gives, where it is kept.
    """

    rows: Tensor
    every_position: bool
    embedding: Tensor
    layers: Tensor
    terms: Tensor
    output: Tensor
    softmax: TeacherSoftmax | TeacherBlocks | None = None


class LiveTeacher:
    """Runs the teacher for each batch; its layers are prepared for a distance."""

    def __init__(self, teacher: AdaRecTeacher, distance: LayerDistance) -> None:
        self.teacher, self.distance = teacher, distance

    @torch.no_grad()
    def targets_of(self, interaction: Any) -> TeacherTargets:
        """The lesson of a batch of windows."""
        encoding, positions = self.teacher.distillation_targets_in(interaction)
        none = encoding.output.new_empty(0, len(encoding.output), self.teacher.hidden_size)
        layers, terms = self.distance.prepare((torch.stack(encoding.layers) if encoding.layers else none).float())
        rows = nonzero_positions(positions)
        everywhere = len(rows) == int((interaction[self.teacher.ITEM_SEQ] != 0).sum())
        return TeacherTargets(rows, everywhere, encoding.embedding.float(), layers, terms, encoding.output.float())


class CachedTeacher:
    """Keeps the lessons of all windows in memory, in half precision.

    Parameters
    ----------
    live : LiveTeacher
        The teacher, in evaluation mode.
    dataset : WindowDataset
        The windows.
    temperature : float, optional
        Keep the teacher's softmax over all items at this temperature too.
    batch_size : int
        Windows that it is asked for at a time.
    student_table : ItemTable, optional
        If it is adaptive, the teacher's scores of its blocks are kept.
    """

    def __init__(
        self,
        live: LiveTeacher,
        dataset: WindowDataset,
        temperature: float | None = None,
        batch_size: int = 64,
        student_table: ItemTable | None = None,
    ) -> None:
        self.item_seq, self.length = live.teacher.ITEM_SEQ, dataset.windows.length
        self.device = next(live.teacher.parameters()).device
        teacher, most = live.teacher, int(dataset.windows.length.sum())
        # Filled in place: to join parts at the end would take the memory twice.
        self.widths, self.layers_shape = _widths(teacher), (teacher.distilled_layers, teacher.hidden_size)
        self.store = torch.empty(most, sum(self.widths), dtype=torch.half, device=self.device)
        self.terms = torch.empty(most, teacher.distilled_layers, device=self.device)
        table = teacher.item_table.matrix
        self.softmax: Tensor | None = None
        if temperature is not None:
            self.softmax = torch.empty(most, len(table), dtype=torch.half, device=self.device)
            self.negative_entropy = torch.empty(most, device=self.device)
        self.block_scores: Tensor | None = None
        if isinstance(student_table, AdaptiveItemTable):
            self.block_scores = torch.empty(most, len(student_table.blocks) - 1, device=self.device)
        rows, columns, done = [], [], 0
        for window in torch.arange(len(dataset)).split(batch_size):
            interaction = dataset[window].to(self.device)
            teacher_targets = live.targets_of(interaction)
            places, width = teacher_targets.rows.cpu(), interaction[self.item_seq].shape[1]
            rows.append(window[places // width])
            columns.append(places % width)
            here = slice(done, done + len(places))
            self.store[here] = torch.cat(
                [teacher_targets.embedding, *teacher_targets.layers, teacher_targets.output], -1
            )
            self.terms[here] = teacher_targets.terms.T
            seen = seen_items(interaction[self.item_seq], teacher_targets.rows, float(teacher.repeat_bias))
            if self.softmax is not None and temperature is not None:
                logits = append_ones(teacher_targets.output) @ table.T
                if seen is not None:
                    seen.add_to(logits)
                log_p = logits.div_(temperature).log_softmax(-1)
                self.softmax[here] = p = log_p.exp()
                self.negative_entropy[here] = (p * log_p).sum(-1)
            if self.block_scores is not None and isinstance(student_table, AdaptiveItemTable):
                self.block_scores[here] = block_scores(teacher_targets.output, table, student_table, seen=seen).scores
            done += len(places)
        self.column = torch.cat(columns)
        self.count = torch.bincount(torch.cat(rows), minlength=len(dataset))
        self.first = self.count.cumsum(0) - self.count

    def targets_of(self, interaction: Any) -> TeacherTargets:
        """The lesson of a batch of windows."""
        # Which rows those are is known without the device: to ask it is to wait for all that was queued.
        windows, width = interaction[WINDOW_FIELD].cpu(), interaction[self.item_seq].shape[1]
        count = self.count[windows]
        row = torch.arange(len(windows)).repeat_interleave(count)
        within = torch.arange(len(row)) - (count.cumsum(0) - count)[row]
        index = self.first[windows][row] + within
        rows = (row * width + self.column[index]).to(self.device, non_blocking=True)
        everywhere = torch.equal(count, self.length[windows])
        index = index.to(self.device, non_blocking=True)
        # index_select takes a tenth of the time of indexing, for half precision on a CPU.
        embedding, layers, output = self.store.index_select(0, index).float().split(self.widths, -1)
        terms = self.terms.index_select(0, index).T
        layers = layers.unflatten(-1, self.layers_shape).transpose(0, 1)
        softmax: TeacherSoftmax | TeacherBlocks | None = None
        if self.block_scores is not None:
            softmax = TeacherBlocks(self.block_scores[index])
        elif self.softmax is not None:
            softmax = TeacherSoftmax(self.softmax, index, self.negative_entropy[index])
        return TeacherTargets(rows, everywhere, embedding, layers, terms, output, softmax)


def _widths(teacher: AdaRecTeacher) -> list[int]:
    """Channels of the embedding, of all layers together, and of the output."""
    return [
        teacher.embedding_size, teacher.distilled_layers * teacher.hidden_size, teacher.item_table.items.shape[1]
    ]  # fmt: skip


class TeacherOutputCache:
    """What one teacher has to say of one dataset, for all that are taught by it.

    A run has a search, candidates that are tried, and a student, 17 trainings by default.
    """

    def __init__(self) -> None:
        self._kept: tuple[Any, CachedTeacher] | None = None

    def get(
        self,
        teacher: AdaRecTeacher,
        distance: LayerDistance,
        dataset: WindowDataset,
        megabytes: int,
        temperature: float | None = None,
        student_table: ItemTable | None = None,
    ) -> LiveTeacher | CachedTeacher:
        """The teacher behind a cache if its outputs fit into `megabytes`, else without.

        With a `temperature` its softmax over all items is kept too, if that fits as well; with an adaptive
        `student_table` its scores of the blocks, which are few.
        """
        live = LiveTeacher(teacher.eval(), distance)
        targets = int(dataset.windows.length.sum())
        # The layers, the embedding and the output in half precision, and a term a layer.
        bytes_each = 2 * sum(_widths(teacher)) + 4 * teacher.distilled_layers
        needed, of_softmax = targets * bytes_each / 1e6, targets * (2 * teacher.n_items + 4) / 1e6
        if needed > megabytes:
            getLogger().info(
                f"teacher outputs need {needed:.0f} MB, teacher_cache_mb is {megabytes}: recomputed for each batch"
            )
            return live
        if needed + of_softmax > megabytes:
            temperature = None
        key = (distance, temperature, student_table.starts if isinstance(student_table, AdaptiveItemTable) else None)
        if self._kept is None or self._kept[0] != key:
            self.clear()  # both at once might need twice the memory
            needed += 0 if temperature is None else of_softmax
            what = "outputs" if temperature is None else "outputs and softmax"
            getLogger().info(f"teacher {what} are kept in memory: {needed:.0f} MB")
            self._kept = key, CachedTeacher(live, dataset, temperature, student_table=student_table)
        return self._kept[1]

    def clear(self) -> None:
        """Free the memory."""
        self._kept = None
