"""Rows of items put together from shared pieces: product quantization.

A row of C channels is cut into m pieces of s channels each, and each piece is the nearest of K that all rows and all
pieces share, times a scale of its channels: which of them is its code, a byte (Jégou et al., IEEE TPAMI 33(1), 2011,
section II-B; of item tables Petrov and Macdonald, WSDM 2024, arXiv 2312.06165). One codebook for all pieces, where both
have one for each, costs a catalog of a few thousand items next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BYTES = 4  # of a parameter
_BOOK = 256  # pieces that a byte tells apart
_ROUNDS = 20  # of k-means
_SAMPLE = 65_536  # pieces that a codebook is found from, and the most of which codes are found at a time


class PQCodes(NamedTuple):
    """Rows ``[n, C]`` as codes.

    Attributes
    ----------
    codes : Tensor
        uint8 ``[n, m]``.
    book : Tensor
        The codebook, ``[K, s]``.
    scale : Tensor
        Of each channel, ``[C]``.
    """

    codes: Tensor
    book: Tensor
    scale: Tensor

    def rows(self) -> Tensor:
        """The rows, ``[n, C]``; the last piece may have channels too many."""
        return F.embedding(self.codes.int(), self.book).flatten(1)[:, : len(self.scale)] * self.scale


def code_parameters(rows: int, size: int, channels: int) -> int:
    """What codes of so many channels cost, in parameters of four bytes: they, their codebook and its scale."""
    pieces = rows * -(-size // channels)
    return -(-pieces // _BYTES) + min(_BOOK, pieces) * channels + size


@torch.no_grad()
def quantize(rows: Tensor, channels: int) -> PQCodes:
    """Find codes of so many channels for rows ``[n, C]``, by k-means; the same ones every time."""
    size = rows.shape[1]
    scale = rows.square().mean(0).sqrt().clamp_min(torch.finfo(rows.dtype).tiny)
    points = F.pad(rows / scale, (0, -size % channels)).reshape(-1, channels)
    some = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:_SAMPLE].to(rows.device)
    book = _k_means(points[some], min(_BOOK, len(points)))
    codes = torch.cat([_nearest(part, book) for part in points.split(_SAMPLE)])
    return PQCodes(codes.to(torch.uint8).view(len(rows), -1), book, scale)


class QuantizedEmbedding(nn.Embedding):
    """An embedding whose rows can become codes: rows in memory, codes in its state, and so in a file.

    Training goes on with the codebooks in place of the rows after `train_codebooks`: in each step
    `backward_to_codebooks` comes after the backward pass, and `sync_rows` after the optimizer.
    """

    _parts: tuple[PQCodes, ...] = ()
    order: Tensor | None = None  # of the rows, as `quantize` was given it; who gave it keeps it in a file

    @torch.no_grad()
    def quantize(self, channels: Sequence[int], sizes: Sequence[int] = (), order: Tensor | None = None) -> None:
        """Make the rows those that codes can say.

        Parameters
        ----------
        channels : sequence of int
            Of the codes of each block of rows.
        sizes : sequence of int
            Rows of each block; one block has all.
        order : Tensor, optional
            The rows, block by block, int64; what is not among them should be 0. All of them, without it.
        """
        rows = self.weight if order is None else self.weight[order]
        blocks = rows.split(list(sizes or [len(rows)]))
        self._parts = tuple(quantize(block, each) for block, each in zip(blocks, channels, strict=True))
        self.order = order
        self.weight.copy_(self._rows())

    def _rows(self) -> Tensor:
        rows = torch.cat([part.rows() for part in self._parts])  # where the codes are: the weight may have moved
        if self.order is None:
            return rows
        return rows.new_zeros(self.weight.shape).index_copy(0, self.order.to(rows.device), rows)

    def train_codebooks(self) -> list[Tensor]:
        """Let the codebooks be trained, while codes stay what they are; those, for an optimizer."""
        self._parts = tuple(part._replace(book=part.book.clone().requires_grad_()) for part in self._parts)
        return [part.book for part in self._parts]

    def backward_to_codebooks(self) -> None:
        """Give the codebooks the gradient of the rows."""
        gradient, self.weight.grad = self.weight.grad, None
        if gradient is not None:
            self._rows().backward(gradient.to_dense() if gradient.is_sparse else gradient)

    @torch.no_grad()
    def sync_rows(self) -> None:
        """Make the rows what their codes say."""
        self.weight.copy_(self._rows())

    @property
    def codes(self) -> tuple[PQCodes, ...]:
        """The codes of each block; none where rows were not encoded, or have changed since."""
        unchanged = self._parts and torch.equal(self._rows().to(self.weight), self.weight)
        return tuple(part._replace(book=part.book.detach()) for part in self._parts) if unchanged else ()

    @property
    def saved(self) -> int:
        """How many parameters fewer the codes have than the rows for which they stand."""
        return sum(
            len(part.codes) * len(part.scale) - code_parameters(len(part.codes), len(part.scale), part.book.shape[1])
            for part in self.codes
        )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        codes = self.codes
        if not codes:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            return
        for j, part in enumerate(codes):
            destination.update({f"{prefix}{name}.{j}": tensor for name, tensor in part._asdict().items()})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        blocks = sum(key.startswith(f"{prefix}codes.") for key in state_dict)
        self._parts = tuple(
            PQCodes(*(state_dict.pop(f"{prefix}{name}.{j}") for name in PQCodes._fields)) for j in range(blocks)
        )
        if self._parts:
            state_dict[f"{prefix}weight"] = self._rows()
        super()._load_from_state_dict(state_dict, prefix, *args)


def _k_means(points: Tensor, k: int) -> Tensor:
    """Centres ``[k, s]`` of ``[n, s]``; one that nothing is near to stays where it was."""
    first = torch.linspace(0, len(points) - 1, k, device=points.device).round().long()
    # With one channel the first centres are its quantiles, otherwise any points.
    centres = points[points[:, 0].argsort()[first] if points.shape[1] == 1 else first]
    for _ in range(_ROUNDS):
        nearest = _nearest(points, centres)
        count = torch.bincount(nearest, minlength=k)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = torch.where(count > 0, sums / count.clamp_min(1), centres)
    return centres


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    return (centres.square().sum(1) - 2 * points @ centres.T).argmin(1)
