"""The teacher's outputs on batches of windows: computed live, or cached once for every epoch of search and student."""

from __future__ import annotations

from itertools import accumulate, pairwise
from logging import getLogger
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recbole_adarec.data.dataset import WINDOW_FIELD, WindowDataset
from recbole_adarec.distillation.layer_mapping import LayerDistance
from recbole_adarec.losses.adaptive_softmax import TeacherBlocks, block_scores
from recbole_adarec.losses.softmax import TeacherSoftmax
from recbole_adarec.model.item_table.base import ItemTable, TeacherTable, append_ones
from recbole_adarec.model.positions import nonzero_positions
from recbole_adarec.model.seen_items import SeenItems, seen_items
from recbole_adarec.model.teachers.base import AdaRecTeacher


class TeacherTargets(NamedTuple):
    """The teacher's outputs on a batch, at the N positions at which it teaches.

    Attributes
    ----------
    rows : Tensor
        These positions, as `nonzero_positions` returns them, int64 ``[N]``.
    every_position : bool
        Whether they are all positions that are not padding.
    embedding : Tensor
        Target of L_emb, ``[N, C]``; in a RecBole model embedding, layers and output may each have another C.
    layers : tuple of Tensor
        Values of the T layers for L_hid, as `LayerDistance.prepare` returns them: ``[T_g, N, C_g]`` for each group of
        `AdaRecTeacher.layer_shapes`.
    terms : tuple of Tensor
        Terms of the layers for L_hid, likewise, ``[T_g, N]`` each.
    output : Tensor
        States that the teacher's item table scores in L_out, ``[N, C]``.
    softmax : TeacherSoftmax or TeacherBlocks, optional
        The softmax of these scores, where it is cached.
    """

    rows: Tensor
    every_position: bool
    embedding: Tensor
    layers: tuple[Tensor, ...]
    terms: tuple[Tensor, ...]
    output: Tensor
    softmax: TeacherSoftmax | TeacherBlocks | None = None


class LiveTeacher:
    """Runs the teacher on each batch.

    Parameters
    ----------
    teacher : AdaRecTeacher
        The teacher, in evaluation mode.
    distance : LayerDistance
        D of L_hid, whose teacher's part is computed here.
    """

    def __init__(self, teacher: AdaRecTeacher, distance: LayerDistance) -> None:
        self.teacher, self.distance = teacher, distance

    @torch.no_grad()
    def targets_of(self, interaction: Any) -> TeacherTargets:
        """The teacher's outputs on a batch of windows, an Interaction."""
        encoding, mask = self.teacher.distillation_targets_in(interaction)
        ends = list(accumulate(number for number, _ in self.teacher.layer_shapes))
        groups = [encoding.layers[begin:end] for begin, end in pairwise([0, *ends])]
        prepared = [self.distance.prepare(torch.stack(group).float()) for group in groups]
        layers, terms = tuple(zip(*prepared, strict=True)) or ((), ())
        rows = nonzero_positions(mask)
        every_position = len(rows) == int((interaction[self.teacher.ITEM_SEQ] != 0).sum())
        return TeacherTargets(rows, every_position, encoding.embedding.float(), layers, terms, encoding.output.float())


class _SoftmaxCache:
    """The teacher's softmax over all items, for at most M positions.

    Parameters
    ----------
    matrix : Tensor
        The rows that score the teacher's outputs, each followed by its prior, ``[I, C_t + 1]``.
    temperature : float
        t of L_out.
    positions : int
        M.
    """

    def __init__(self, matrix: Tensor, temperature: float, positions: int) -> None:
        self._matrix, self._temperature = matrix, temperature
        self._probability = torch.empty(positions, len(matrix), dtype=torch.half, device=matrix.device)
        self._negative_entropy = torch.empty(positions, device=matrix.device)

    def fill(self, part: slice, output: Tensor, seen: SeenItems | None) -> None:
        """Cache the softmax of outputs ``[n, C_t]`` with the items seen before them."""
        logits = append_ones(output) @ self._matrix.T
        if seen is not None:
            seen.add_to(logits)
        log_p = logits.div_(self._temperature).log_softmax(-1)
        self._probability[part] = p = log_p.exp()
        self._negative_entropy[part] = (p * log_p).sum(-1)

    def select(self, index: Tensor) -> TeacherSoftmax:
        """The softmax at some of the M positions, int64 ``[N]``."""
        return TeacherSoftmax(self._probability, index, self._negative_entropy[index])


class _BlockCache:
    """The teacher's logits of the tail blocks of a student's item table, for at most M positions.

    Parameters
    ----------
    matrix : Tensor
        As `_SoftmaxCache`.
    student_table : ItemTable
        The student's item table, with J tail blocks.
    positions : int
        M.
    """

    def __init__(self, matrix: Tensor, student_table: ItemTable, positions: int) -> None:
        self._matrix, self._student_table = matrix, student_table
        self._scores = torch.empty(positions, student_table.tail_blocks, device=matrix.device)

    def fill(self, part: slice, output: Tensor, seen: SeenItems | None) -> None:
        """Cache the logits of outputs ``[n, C_t]`` with the items seen before them."""
        self._scores[part] = block_scores(output, self._matrix, self._student_table, seen).scores

    def select(self, index: Tensor) -> TeacherBlocks:
        """The logits at some of the M positions, int64 ``[N]``."""
        return TeacherBlocks(self._scores[index])


class CachedTeacher:
    """The teacher's outputs on all windows, in memory in half precision.

    Parameters
    ----------
    live : LiveTeacher
        The teacher, in evaluation mode.
    dataset : WindowDataset
        The windows.
    temperature : float, optional
        Cache the teacher's softmax over all items at this temperature too.
    batch_size : int
        Windows that the teacher encodes at a time.
    student_table : ItemTable, optional
        The student's item table; where its softmax has two levels, the teacher's logits of its tail blocks are cached,
        and not the softmax over all items.
    """

    def __init__(
        self,
        live: LiveTeacher,
        dataset: WindowDataset,
        temperature: float | None = None,
        batch_size: int = 64,
        student_table: ItemTable | None = None,
    ) -> None:
        teacher, positions = live.teacher, int(dataset.windows.length.sum())
        self._item_seq, self._length = teacher.ITEM_SEQ, dataset.windows.length
        self._device = next(teacher.parameters()).device
        # Filled in place: to join parts at the end would take the memory twice.
        self._widths, self._layer_shapes = _widths(teacher), teacher.layer_shapes
        self._outputs = torch.empty(positions, sum(self._widths), dtype=torch.half, device=self._device)
        self._terms = torch.empty(positions, teacher.distilled_layers, device=self._device)
        matrix = teacher.item_table.matrix
        self._softmax: _SoftmaxCache | _BlockCache | None = None
        if student_table is not None and student_table.tail_blocks:
            self._softmax = _BlockCache(matrix, student_table, positions)
        elif temperature is not None:
            self._softmax = _SoftmaxCache(matrix, temperature, positions)
        windows, columns, done = [], [], 0
        for window in torch.arange(len(dataset)).split(batch_size):
            interaction = dataset[window].to(self._device)
            targets = live.targets_of(interaction)
            rows, width = targets.rows.cpu(), interaction[self._item_seq].shape[1]
            windows.append(window[rows // width])
            columns.append(rows % width)
            part = slice(done, done + len(rows))
            layers = [layer for group in targets.layers for layer in group]
            self._outputs[part] = torch.cat([targets.embedding, *layers, targets.output], -1)
            if targets.terms:
                self._terms[part] = torch.cat(targets.terms).T
            if self._softmax is not None:
                seen = seen_items(interaction[self._item_seq], targets.rows, float(teacher.repeat_bias))
                self._softmax.fill(part, targets.output, seen)
            done += len(rows)
        self._column = torch.cat(columns)
        self._count = torch.bincount(torch.cat(windows), minlength=len(dataset))  # of the positions of each window
        self._first = self._count.cumsum(0) - self._count

    def targets_of(self, interaction: Any) -> TeacherTargets:
        """The teacher's outputs on a batch of windows, an Interaction with their numbers in the dataset."""
        # Computed on the CPU: to read anything from a GPU is to wait for all that was queued.
        windows, width = interaction[WINDOW_FIELD].cpu(), interaction[self._item_seq].shape[1]
        count = self._count[windows]
        window = torch.arange(len(windows)).repeat_interleave(count)
        within = torch.arange(len(window)) - (count.cumsum(0) - count)[window]
        index = self._first[windows][window] + within
        rows = (window * width + self._column[index]).to(self._device, non_blocking=True)
        every_position = torch.equal(count, self._length[windows])
        index = index.to(self._device, non_blocking=True)
        # index_select takes a tenth of the time of indexing, for half precision on a CPU.
        embedding, *groups, output = self._outputs.index_select(0, index).float().split(self._widths, -1)
        shapes = self._layer_shapes
        layers = tuple(group.unflatten(-1, shape).transpose(0, 1) for group, shape in zip(groups, shapes, strict=True))
        terms = self._terms.index_select(0, index).T.split([number for number, _ in shapes])
        softmax = None if self._softmax is None else self._softmax.select(index)
        return TeacherTargets(rows, every_position, embedding, layers, terms, output, softmax)


def _widths(teacher: AdaRecTeacher) -> list[int]:
    """Channels of the embedding, of all layers of each group together, and of the output."""
    table: TeacherTable = teacher.item_table
    return [teacher.embedding_size, *(number * size for number, size in teacher.layer_shapes), table.items.shape[1]]


class TeacherOutputCache:
    """Cache of one teacher's outputs on one dataset, shared by all trainings that distil from it.

    A run has a search, the trainings of its candidates, and a student: 17 trainings by default.
    """

    def __init__(self) -> None:
        self._cached: tuple[Any, CachedTeacher] | None = None

    def get(
        self,
        teacher: AdaRecTeacher,
        distance: LayerDistance,
        dataset: WindowDataset,
        megabytes: int,
        temperature: float | None = None,
        student_table: ItemTable | None = None,
    ) -> LiveTeacher | CachedTeacher:
        """The teacher's outputs from memory if they fit, else live.

        Parameters
        ----------
        teacher : AdaRecTeacher
            The teacher; it is set to evaluation mode.
        distance : LayerDistance
            D of L_hid.
        dataset : WindowDataset
            The training windows.
        megabytes : int
            Memory that the outputs may take (``teacher_cache_mb``).
        temperature : float, optional
            Cache the softmax over all items at this temperature too, if that fits as well.
        student_table : ItemTable, optional
            The student's item table; of one whose softmax has two levels the teacher's logits of the tail blocks, which
            are few, are cached too.
        """
        live = LiveTeacher(teacher.eval(), distance)
        positions = int(dataset.windows.length.sum())
        # The layers, the embedding and the output in half precision, and a term a layer.
        bytes_each = 2 * sum(_widths(teacher)) + 4 * teacher.distilled_layers
        needed, softmax_needed = positions * bytes_each / 1e6, positions * (2 * teacher.n_items + 4) / 1e6
        if needed > megabytes:
            getLogger().info(
                f"teacher outputs need {needed:.0f} MB, teacher_cache_mb is {megabytes}: recomputed for each batch"
            )
            return live
        if needed + softmax_needed > megabytes:
            temperature = None
        starts = None if student_table is None else student_table.starts
        key = (distance, temperature, starts)
        if self._cached is None or self._cached[0] != key:
            self.clear()  # both at once might need twice the memory
            needed += 0 if temperature is None else softmax_needed
            content = "outputs" if temperature is None else "outputs and softmax"
            getLogger().info(f"teacher {content} cached in memory: {needed:.0f} MB")
            self._cached = key, CachedTeacher(live, dataset, temperature, student_table=student_table)
        return self._cached[1]

    def clear(self) -> None:
        """Free the memory."""
        self._cached = None
