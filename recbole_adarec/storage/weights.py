"""Weights in fewer bits: how a model file holds them, and what it gives back.

``float16`` rounds every number to a half. ``int8`` holds a matrix as whole numbers from -127 to 127 with a scale for
each row (symmetric quantization, Jacob et al., arXiv 1712.05877, section 2.1), and what is no matrix as halves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_LEVELS = 127  # on each side of 0
_LEAST_COLUMNS = 16  # of a matrix in whole numbers: beside shorter rows the scales are not small
_EXACT = ("prior", "prior_values", "repeat_bias")  # items are ordered by their priors, which differ by little


def packed(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """A state dict in the form of a file.

    Parameters
    ----------
    state : mapping of str to Tensor
        What ``state_dict`` of a model returned.
    kind : str
        ``float32``: as it is; ``float16`` or ``int8``.

    Returns
    -------
    dict of str to Tensor
        A matrix in whole numbers has two entries, ``<name>.int8`` ``[n, m]`` and ``<name>.scale`` ``[n]``. What was
        unpacked and is packed again is the same. A tensor under several names stays one.
    """
    if kind == "float32":
        return dict(state)
    done: dict[Any, dict[str, Tensor]] = {}
    result = {}
    for name, tensor in state.items():
        key = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
        if not tensor.is_floating_point() or name.rpartition(".")[2] in _EXACT:
            parts = few_values(tensor) if name.endswith(".prior") else {"": tensor}
        elif tensor.numel() and key in done:
            parts = done[key]
        elif kind == "int8" and tensor.ndim == 2 and tensor.shape[1] >= _LEAST_COLUMNS:
            # The scale has 8 bits of fraction and all exponents of a float: 127 times it is exact as a float.
            scale = (tensor.abs().amax(1) / _LEVELS).to(torch.bfloat16)
            whole = (tensor / scale.to(tensor).clamp_min(torch.finfo(tensor.dtype).tiny)[:, None]).round()
            parts = {".int8": whole.clamp(-_LEVELS, _LEVELS).to(torch.int8), ".scale": scale}
        else:
            parts = {"": tensor.half()}
        done[key] = parts
        result.update({name + suffix: part for suffix, part in parts.items()})
    return result


def few_values(tensor: Tensor) -> dict[str, Tensor]:
    """A tensor ``[n]`` as its different values, ``_values``, and their index, ``_index``, of a byte or two an entry.

    Items that occur equally often share a prior. With too many values for that it stays as it is.
    """
    values, index = tensor.unique(return_inverse=True)
    if len(values) >= 2**15:
        return {"": tensor}
    return {"_values": values, "_index": index.to(torch.uint8 if len(values) <= 2**8 else torch.int16)}


def unpacked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict in 32-bit floats of what `packed` returned; item tables read the priors in either form."""
    result = {}
    for name, tensor in state.items():
        whole, scale = (f"{name.rpartition('.')[0]}.{part}" for part in ("int8", "scale"))
        if name not in (whole, scale) or not (whole in state and scale in state):
            result[name] = tensor.float() if tensor.is_floating_point() else tensor
        elif name == whole:
            result[name.removesuffix(".int8")] = tensor.float() * state[scale].float()[:, None]
    return result


def stored_bytes(state: Mapping[str, Tensor]) -> int:
    """Bytes of the tensors of a state dict; one that has several names is counted once."""
    storages = {(tensor.data_ptr(), tensor.dtype, tensor.shape): tensor.nbytes for tensor in state.values()}
    return sum(storages.values())
