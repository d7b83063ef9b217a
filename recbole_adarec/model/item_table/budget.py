"""Cuts a catalog into blocks, and chooses widths and codes within a budget of parameters."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.item_table.quantization import code_parameters

_CHANNELS = (1, 2, 3, 4, 6, 8)  # of a code, where a budget chooses


class Blocks(NamedTuple):
    """How a catalog is cut: items and width of each block, the most popular items first.

    After training, the rows of each block become codes of so many channels (`item_codes`), if that is given.
    """

    sizes: tuple[int, ...]
    widths: tuple[int, ...]
    codes: tuple[int, ...] = ()


def cut_blocks(config: Any, items: int, size: int, limit: int | None = None) -> Blocks:
    """Sizes and widths of the blocks of a catalog.

    ``item_blocks`` is their number, each ``item_block_growth`` times as large as the one before, or a list of where
    the blocks after the first begin: ranks by popularity, or shares of the catalog below 1. ``item_widths`` lists
    their channels, or they fall from C by ``item_width_factor``, and ``item_codes`` gives the channels of a code.

    Without any of these all rows have C channels, and codes as fine as `limit` allows (`_finest`), or none if none
    are needed. With ``item_codes: 0``, or where codes do not fit, rows are as wide as it allows (`_widest`). Without
    a limit, or where nothing fits it, the factor is 2: all blocks cost the same.

    Codes keep more than narrow rows. Measured with trained models whose tables were cut afterwards, validation
    NDCG@10: a NextItNet of Beauty, .0649 with 774,528 parameters in its table, has .0532 to .0553 in six cuts by
    truncated SVD to 256 to 259 thousand; a student of Beauty, .0693 with 387,232, has .0689 in 98 thousand as codes of
    one channel, .0684 in 60 thousand as codes of 1, 1, 2 and 2. How narrow rows are cut matters less: a NextItNet of
    ml-1m-tail, .1331 with 218,432, has .1315 to .1328 in eight cuts to 122 to 125 thousand (2 to 4 blocks, growth 1 to
    3, the head in 40 to 64 channels), and .1183 to .1205 in five to 60 thousand.

    Raises
    ------
    AdaRecError
        Names the key, and what would be right.
    """
    asked = config["item_blocks"]
    if isinstance(asked, int):
        parts = [float(config["item_block_growth"]) ** j for j in range(asked)]
        shares = [sum(parts[: j + 1]) / sum(parts) for j in range(asked - 1)]
        ends = [max(round(share * items), j + 1) for j, share in enumerate(shares)]
    else:
        ends = [round(end * items) if end < 1 else int(end) for end in asked]
    ends = [0, *ends, items]
    sizes = tuple(end - start for start, end in zip(ends, ends[1:], strict=False))
    if min(sizes) < 1 or len(sizes) < 2:
        raise AdaRecError(
            f"item_blocks: {asked!r} cuts the {items} items of this catalog into blocks of {list(sizes)}; there are "
            "at least two, of at least one item each: give fewer blocks, or boundaries that rise within the catalog"
        )
    widths, factor, codes = config["item_widths"], config["item_width_factor"], config["item_codes"]
    codes = (codes,) * len(sizes) if isinstance(codes, int) and codes else codes
    tied = config["item_output"] == "tied"
    if widths is None and factor is None and limit is not None:
        if codes is None:
            codes = _finest(sizes, size, limit, tied)
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
    return tuple(max(round(size / factor**j), 1) for j in range(blocks))


def _finest(sizes: tuple[int, ...], size: int, limit: int, tied: bool) -> tuple[int, ...] | None:
    """Channels of the codes of each block, as few as `limit` allows; none where rows of C channels need no codes.

    What codes lose matters as often as an item is wanted, taken as the inverse of its rank behind as many more as the
    head has (Zipf and Mandelbrot; so four blocks, each twice the one before, have a quarter each, where they have .25,
    .30, .30 and .14 of the targets of ml-1m-tail, .38, .23, .20 and .18 of those of Beauty). Codes become coarser where
    the least is lost for what it saves. A code of s channels has 8/s bits for each, and loses about 4^(-8/s) of a row
    (Gersho and Gray, Vector Quantization and Signal Compression, 1992, chapter 5). Measured on a student of ml-1m-tail,
    validation NDCG@10 of .1384: codes of 2, 2, 4 and 6 channels .1306, of 3, 3, 4 and 4, as large together, .1287.
    """
    if table_parameters(Blocks(sizes, (size,) * len(sizes)), size, tied) <= limit:
        return ()
    ends = [math.log(sum(sizes[:j]) + sizes[0]) for j in range(len(sizes) + 1)]
    wanted = [end - start for start, end in zip(ends, ends[1:], strict=False)]
    channels = [each for each in _CHANNELS if each <= size]
    level = [0] * len(sizes)

    def changed(j: int, by: int) -> list[int]:
        return [of + by * (j == k) for k, of in enumerate(level)]

    def parameters(of: list[int]) -> int:
        codes = tuple(channels[each] for each in of)
        return table_parameters(Blocks(sizes, (size,) * len(sizes), codes), size, tied)

    def lost(of: list[int]) -> float:
        return sum(share * 4 ** (-8 / channels[each]) for share, each in zip(wanted, of, strict=True))

    def lost_for_saved(of: list[int]) -> float:
        return (lost(of) - lost(level)) / (parameters(level) - parameters(of))

    while parameters(level) > limit:
        coarser = [changed(j, 1) for j, of in enumerate(level) if of + 1 < len(channels)]
        coarser = [of for of in coarser if parameters(of) < parameters(level)]
        if not coarser:
            return None
        level = min(coarser, key=lost_for_saved)
    # The last step may have saved more than it had to.
    while finer := [of for j, old in enumerate(level) if old and parameters(of := changed(j, -1)) <= limit]:
        level = min(finer, key=lost)
    return tuple(channels[of] for of in level)


def _widest(sizes: tuple[int, ...], size: int, limit: int, tied: bool) -> tuple[int, ...] | None:
    """The widest blocks of at most `limit` parameters: a factor from 1 to 2, and beyond that a narrower head."""
    shapes = [(size, 1 + step / 100) for step in range(101)] + [(size * step / 100, 2.0) for step in range(99, 0, -1)]
    for top, factor in shapes:
        widths = _falling(top, factor, len(sizes))
        if table_parameters(Blocks(sizes, widths), size, tied) <= limit:
            return widths
    return None


def table_parameters(blocks: Blocks, size: int, tied: bool) -> int:
    """Parameters of an `AdaptiveItemTable`, encoded if it has codes."""
    codes = blocks.codes or (0,) * len(blocks.sizes)
    of_blocks = sum(
        (code_parameters(n, d, c) if c else n * d) + (d * size if d < size else 0)
        for n, d, c in zip(blocks.sizes, blocks.widths, codes, strict=True)
    )
    return of_blocks * (1 if tied else 2) + (len(blocks.sizes) - 1) * (size + 1)
