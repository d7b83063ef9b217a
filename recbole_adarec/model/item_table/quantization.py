"""Product quantization of item embeddings: rows as bytes that point into a codebook.

A row of C channels is cut into m pieces of s channels. A codebook of K centres is shared by all rows and all pieces;
the code of a piece is a byte, the number of the nearest centre, which is scaled channel by channel (Jégou et al., IEEE
TPAMI 33(1), 2011, section II-B; of item tables Petrov and Macdonald, WSDM 2024, arXiv 2312.06165). One codebook for all
pieces, where both papers have one for each piece, costs a catalog of a few thousand items next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BYTES = 4  # of a parameter
_CENTRES = 256  # that a byte tells apart
_ROUNDS = 20  # of k-means
_SAMPLE = 65_536  # pieces that a codebook is fitted to, and the most whose codes are computed at a time


class PQCodes(NamedTuple):
    """Rows ``[n, C]`` as PQ codes of m pieces of s channels, with K centres.

    Attributes
    ----------
    codes : Tensor
        Centre of each piece, uint8 ``[n, m]``.
    book : Tensor
        The codebook, ``[K, s]``.
    scale : Tensor
        Scale of each channel, ``[C]``.
    """

    codes: Tensor
    book: Tensor
    scale: Tensor

    def rows(self) -> Tensor:
        """The rows ``[n, C]``; channels of the last piece beyond C are dropped."""
        return F.embedding(self.codes.int(), self.book).flatten(1)[:, : len(self.scale)] * self.scale


def code_parameters(rows: int, size: int, channels: int) -> int:
    """Size of PQ codes in parameters of four bytes: the codes, their codebook and its scale.

    Parameters
    ----------
    rows, size, channels : int
        n, C and s.
    """
    pieces = rows * -(-size // channels)
    return -(-pieces // _BYTES) + min(_CENTRES, pieces) * channels + size


@torch.no_grad()
def quantize(rows: Tensor, channels: int) -> PQCodes:
    """PQ codes of rows ``[n, C]`` with pieces of so many channels, by k-means; the same on every call."""
    size = rows.shape[1]
    scale = rows.square().mean(0).sqrt().clamp_min(torch.finfo(rows.dtype).tiny)
    pieces = F.pad(rows / scale, (0, -size % channels)).reshape(-1, channels)
    sample = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0))[:_SAMPLE].to(rows.device)
    book = _k_means(pieces[sample], min(_CENTRES, len(pieces)))
    codes = torch.cat([_nearest(part, book) for part in pieces.split(_SAMPLE)])
    return PQCodes(codes.to(torch.uint8).view(len(rows), -1), book, scale)


class QuantizedEmbedding(nn.Embedding):
    """An embedding whose rows can become PQ codes: rows in memory, codes in the state dict, and so in a file.

    After `train_codebooks` the codebooks are trained in place of the rows: in each step `backward_to_codebooks` comes
    after the backward pass, and `sync_rows` after the optimizer.

    Attributes
    ----------
    order : Tensor or None
        The rows in the order of the codes, as given to `quantize`. It is not in this module's state dict: the item
        table saves it.
    """

    _parts: tuple[PQCodes, ...] = ()  # of each block
    order: Tensor | None = None

    @torch.no_grad()
    def quantize(self, channels: Sequence[int], sizes: Sequence[int] = (), order: Tensor | None = None) -> None:
        """Replace the rows by the nearest that codes can express.

        Parameters
        ----------
        channels : sequence of int
            Channels s of the codes of each block of rows.
        sizes : sequence of int
            Rows of each block; one block of all rows by default.
        order : Tensor, optional
            The rows, block by block, int64; rows that are not in it should be 0. By default all rows in their order.
        """
        rows = self.weight if order is None else self.weight[order]
        blocks = rows.split(list(sizes or [len(rows)]))
        self._parts = tuple(quantize(block, each) for block, each in zip(blocks, channels, strict=True))
        self.order = order
        self.weight.copy_(self._rows())

    def _rows(self) -> Tensor:
        """The rows that the codes express, on the device of the codes: the weight may have moved to another one."""
        rows = torch.cat([part.rows() for part in self._parts])
        if self.order is None:
            return rows
        return rows.new_zeros(self.weight.shape).index_copy(0, self.order.to(rows.device), rows)

    def train_codebooks(self) -> list[Tensor]:
        """Make the codebooks trainable while the codes stay. Returns the codebooks, for an optimizer."""
        self._parts = tuple(part._replace(book=part.book.clone().requires_grad_()) for part in self._parts)
        return [part.book for part in self._parts]

    def backward_to_codebooks(self) -> None:
        """Pass the gradient of the rows on to the codebooks, and clear it."""
        gradient, self.weight.grad = self.weight.grad, None
        if gradient is not None:
            self._rows().backward(gradient.to_dense() if gradient.is_sparse else gradient)

    @torch.no_grad()
    def sync_rows(self) -> None:
        """Compute the rows again from codes and codebooks."""
        self.weight.copy_(self._rows())

    @property
    def codes(self) -> tuple[PQCodes, ...]:
        """Codes of each block; empty where rows were not quantized, or have changed since."""
        unchanged = self._parts and torch.equal(self._rows().to(self.weight), self.weight)
        return tuple(part._replace(book=part.book.detach()) for part in self._parts) if unchanged else ()

    @property
    def saved_parameters(self) -> int:
        """How many parameters fewer the codes have than the rows."""
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
    """Centres ``[k, s]`` of points ``[n, s]``; a centre to which no point is nearest stays where it is."""
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
    """Index of the nearest centre of each point, int64 ``[n]``."""
    return (centres.square().sum(1) - 2 * points @ centres.T).argmin(1)
