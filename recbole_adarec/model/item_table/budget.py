"""Cuts a catalog into blocks by popularity, and chooses their widths and codes within a budget of parameters."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.item_table.quantization import code_parameters

_CODE_CHANNELS = (1, 2, 3, 4, 6, 8)  # among which a budget chooses


class Blocks(NamedTuple):
    """How a catalog is cut into blocks, the most popular items first.

    Attributes
    ----------
    sizes : tuple of int
        Items of each block, n_j.
    widths : tuple of int
        Channels of each block's rows, d_j.
    codes : tuple of int
        Channels of each block's PQ codes, which the rows become after training (`item_codes`); empty without codes.
    """

    sizes: tuple[int, ...]
    widths: tuple[int, ...]
    codes: tuple[int, ...] = ()


def cut_blocks(config: Any, items: int, size: int, limit: int | None = None) -> Blocks:
    """Sizes, widths and codes of the blocks of a catalog.

    ``item_blocks`` is the number of blocks, each ``item_block_growth`` times as large as the one before, or a list of
    where the blocks after the first begin: ranks by popularity, or shares of the catalog below 1. ``item_widths`` lists
    their channels, or they fall from C by ``item_width_factor``, and ``item_codes`` gives the channels of a code.

    Without any of these all rows have C channels, and codes as fine as `limit` allows (`_finest_codes`), or none if
    none are needed. With ``item_codes: 0``, or where codes do not fit, rows are as wide as it allows (`_widest`).
    Without a limit, or where nothing fits it, the factor is 2: with the default growth of 2, all blocks have about the
    same number of parameters.

    Parameters
    ----------
    config : recbole.config.Config or dict
        The keys above and ``item_output``.
    items : int
        Items without padding, I - 1.
    size : int
        C.
    limit : int, optional
        Parameters that the table should have at most.

    Raises
    ------
    AdaRecError
        If blocks, widths or codes do not fit the catalog: names the key, and what would be right.

    Notes
    -----
    Codes keep more than narrow rows. Measured with trained models whose tables were cut afterwards, validation
    NDCG@10: a NextItNet of Beauty, 0.0649 with 774,528 parameters in its table, has 0.0532 to 0.0553 in six cuts by
    truncated SVD to 256 to 259 thousand; a student of Beauty, 0.0693 with 387,232, has 0.0689 in 98 thousand as codes
    of one channel, 0.0684 in 60 thousand as codes of 1, 1, 2 and 2. How narrow rows are cut matters less: a NextItNet
    of ml-1m-tail, 0.1331 with 218,432, has 0.1315 to 0.1328 in eight cuts to 122 to 125 thousand (2 to 4 blocks, growth
    1 to 3, the head in 40 to 64 channels), and 0.1183 to 0.1205 in five to 60 thousand.
    """
    value = config["item_blocks"]
    if isinstance(value, int):
        parts = [float(config["item_block_growth"]) ** j for j in range(value)]
        shares = [sum(parts[: j + 1]) / sum(parts) for j in range(value - 1)]
        ends = [max(round(share * items), j + 1) for j, share in enumerate(shares)]
    else:
        ends = [round(end * items) if end < 1 else int(end) for end in value]
    ends = [0, *ends, items]
    sizes = tuple(end - start for start, end in zip(ends, ends[1:], strict=False))
    if min(sizes) < 1 or len(sizes) < 2:
        raise AdaRecError(
            f"item_blocks: {value!r} cuts the {items} items of this catalog into blocks of {list(sizes)}; there are "
            "at least two, of at least one item each: give fewer blocks, or boundaries that rise within the catalog"
        )
    widths, factor, codes = config["item_widths"], config["item_width_factor"], config["item_codes"]
    codes = (codes,) * len(sizes) if isinstance(codes, int) and codes else codes
    tied = config["item_output"] == "tied"
    if widths is None and factor is None and limit is not None:
        if codes is None:
            codes = _finest_codes(sizes, size, limit, tied)
        widths = (size,) * len(sizes) if codes else _widest(sizes, size, limit, tied)
    codes = tuple(codes or ())
    if codes and (len(codes) != len(sizes) or not all(isinstance(c, int) and 1 <= c <= size for c in codes)):
        raise AdaRecError(
            f"item_codes: {config['item_codes']!r} for {len(sizes)} blocks and {size} channels; give a number from 1 "
            f"to {size}, or {len(sizes)} of them; 0 for none"
        )
    if widths is None:
        widths = _falling(size, 2.0 if factor is None else factor, len(sizes))
    if len(widths) != len(sizes) or not all(1 <= width <= size for width in widths):
        raise AdaRecError(
            f"item_widths: {widths!r} for {len(sizes)} blocks and {size} channels; give {len(sizes)} widths from 1 to "
            f"{size}"
        )
    return Blocks(sizes, tuple(widths), codes)


def _falling(size: float, factor: float, blocks: int) -> tuple[int, ...]:
    """Widths that fall by a factor from block to block, at least 1."""
    return tuple(max(round(size / factor**j), 1) for j in range(blocks))


def _finest_codes(sizes: tuple[int, ...], size: int, limit: int, tied: bool) -> tuple[int, ...] | None:
    """Channels per code for each block: the finest codes whose table has at most `limit` parameters.

    Empty where rows of C channels need no codes, None where even the coarsest codes do not fit.

    The loss of a block's codes is weighted by how often its items are targets, estimated as the inverse of an item's
    rank plus the size of the head (Zipf and Mandelbrot). Codes become coarser, one block at a time, where the least is
    lost for what it saves. A code of s channels has 8/s bits for each, and loses about 4^(-8/s) of a row (Gersho and
    Gray, Vector Quantization and Signal Compression, 1992, chapter 5).

    Notes
    -----
    By these weights four blocks, each twice the one before, have a quarter each; they have 0.25, 0.30, 0.30 and 0.14 of
    the targets of ml-1m-tail, 0.38, 0.23, 0.20 and 0.18 of those of Beauty. Measured on a student of ml-1m-tail with a
    validation NDCG@10 of 0.1384: codes of 2, 2, 4 and 6 channels 0.1306, of 3, 3, 4 and 4, as large together, 0.1287.
    """
    if table_parameters(Blocks(sizes, (size,) * len(sizes)), size, tied) <= limit:
        return ()
    ends = [math.log(sum(sizes[:j]) + sizes[0]) for j in range(len(sizes) + 1)]
    demand = [end - start for start, end in zip(ends, ends[1:], strict=False)]
    channels = [each for each in _CODE_CHANNELS if each <= size]
    levels = [0] * len(sizes)  # of each block, an index into the channels

    def changed(j: int, step: int) -> list[int]:
        return [level + step * (j == k) for k, level in enumerate(levels)]

    def parameters(levels: list[int]) -> int:
        codes = tuple(channels[level] for level in levels)
        return table_parameters(Blocks(sizes, (size,) * len(sizes), codes), size, tied)

    def lost(levels: list[int]) -> float:
        return sum(share * 4 ** (-8 / channels[level]) for share, level in zip(demand, levels, strict=True))

    def lost_for_saved(changed: list[int]) -> float:
        return (lost(changed) - lost(levels)) / (parameters(levels) - parameters(changed))

    while parameters(levels) > limit:
        coarser = [changed(j, 1) for j, level in enumerate(levels) if level + 1 < len(channels)]
        coarser = [each for each in coarser if parameters(each) < parameters(levels)]
        if not coarser:
            return None
        levels = min(coarser, key=lost_for_saved)
    # The last step may have saved more than it had to.
    while finer := [step for j, level in enumerate(levels) if level and parameters(step := changed(j, -1)) <= limit]:
        levels = min(finer, key=lost)
    return tuple(channels[level] for level in levels)


def _widest(sizes: tuple[int, ...], size: int, limit: int, tied: bool) -> tuple[int, ...] | None:
    """Widths of the widest blocks of at most `limit` parameters, None where none fit.

    The head has C channels and the width falls by a factor from 1 to 2; where 2 is not enough, the head is narrower.
    """
    shapes = [(size, 1 + step / 100) for step in range(101)] + [(size * step / 100, 2.0) for step in range(99, 0, -1)]
    for head, factor in shapes:
        widths = _falling(head, factor, len(sizes))
        if table_parameters(Blocks(sizes, widths), size, tied) <= limit:
            return widths
    return None


def table_parameters(blocks: Blocks, size: int, tied: bool) -> int:
    """Parameters of an `AdaptiveItemTable`, quantized if its blocks have codes.

    Parameters
    ----------
    blocks : Blocks
        Its blocks.
    size : int
        C.
    tied : bool
        Whether the softmax uses the embeddings.
    """
    codes = blocks.codes or (0,) * len(blocks.sizes)
    rows_and_projections = sum(
        (code_parameters(n, d, c) if c else n * d) + (d * size if d < size else 0)
        for n, d, c in zip(blocks.sizes, blocks.widths, codes, strict=True)
    )
    return rows_and_projections * (1 if tied else 2) + (len(blocks.sizes) - 1) * (size + 1)
