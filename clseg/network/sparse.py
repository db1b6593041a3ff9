"""Sparse: a tensor of mostly zeros as a bit mask and the values where the mask is set.

In the file a sparse tensor `x` is two: `x.mask`, uint8, one bit per element in
memory order, lowest bit first, padded with zero bits; and `x.values`, the elements
whose bit is set, in their own precision.  Its shape and precision are noted beside
them.  Zero means that all bits are zero, so that -0.0 is a value and everything
comes back exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch

from clseg.errors import WeightsError

MASK, VALUES = ".mask", ".values"
ENTRY_BYTES = 256  # about what the second entry and the note cost in a file's header

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of an element → integers to look at its bits

Tensors = dict[str, torch.Tensor]
Notes = dict[str, dict[str, Any]]


def pack(tensors: Mapping[str, torch.Tensor]) -> tuple[Tensors, Notes]:
    """The tensors as they are stored, the smaller way each, and a note {"shape", "dtype"} for every sparse one."""
    stored: Tensors = {}
    notes: Notes = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        taken = name + MASK in tensors or name + VALUES in tensors
        mask = None if taken else _worthwhile_mask(tensor)
        if mask is None:
            stored[name] = tensor
        else:
            stored[name + MASK] = torch.from_numpy(np.packbits(mask.numpy(), bitorder="little"))
            stored[name + VALUES] = tensor.reshape(-1)[mask]
            notes[name] = {"shape": list(tensor.shape), "dtype": _dtype_name(tensor)}
    return stored, notes


def unpack(stored: Mapping[str, torch.Tensor], notes: Any) -> Tensors:
    """Inverse of `pack`: all tensors dense; WeightsError when masks, values and notes do not agree."""
    tensors = dict(stored)
    if not isinstance(notes, dict):
        raise WeightsError(f"The list of sparse tensors must be a JSON object, given {notes!r}.")
    for name, note in notes.items():
        mask, values = tensors.pop(name + MASK, None), tensors.pop(name + VALUES, None)
        if mask is None or values is None or name in tensors:
            raise WeightsError(f"The sparse tensor '{name}' must be stored as one mask and its values, and is not.", tip="Fetch the file again.")
        problem = _problem(mask, values, note)
        if problem:
            raise WeightsError(f"The sparse tensor '{name}' is damaged: {problem}.", tip="Fetch the file again.")
        tensors[name] = _expanded(mask, values, note["shape"])
    return tensors


def _worthwhile_mask(tensor: torch.Tensor) -> torch.Tensor | None:
    """Where the flat tensor is not zero; None when storing it dense takes no more room."""
    mask = tensor.reshape(-1).view(_BITS[tensor.element_size()]) != 0
    sparse = -(-mask.numel() // 8) + int(mask.sum()) * tensor.element_size() + ENTRY_BYTES
    return mask if sparse < tensor.nbytes else None


def _problem(mask: torch.Tensor, values: torch.Tensor, note: Any) -> str | None:
    """Why these three are not one tensor; None when they are."""
    if not isinstance(note, dict) or set(note) != {"shape", "dtype"}:
        return f"its note must have shape and dtype, given {note!r}"
    shape = note["shape"]
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        return f"its shape must be a list of sizes, given {shape!r}"
    if note["dtype"] != _dtype_name(values):
        return f"its values are {_dtype_name(values)}, expected {note['dtype']}"
    if mask.dtype != torch.uint8 or mask.ndim != 1 or values.ndim != 1:
        return "mask and values must be flat, the mask of bytes"
    if len(mask) != -(-prod(shape) // 8):
        return f"its mask has {len(mask)} bytes, expected {-(-prod(shape) // 8)} for {prod(shape)} elements"
    bits = np.unpackbits(mask.numpy(), bitorder="little")
    if bits[prod(shape) :].any():
        return "its mask is set beyond the last element"
    if int(bits.sum(dtype=np.int64)) != len(values):
        return f"its mask has {int(bits.sum(dtype=np.int64))} bits set, its values are {len(values)}"
    return None


def _expanded(mask: torch.Tensor, values: torch.Tensor, shape: list[int]) -> torch.Tensor:
    bits = np.unpackbits(mask.numpy(), count=prod(shape), bitorder="little")
    dense = torch.zeros(prod(shape), dtype=values.dtype)
    dense[torch.from_numpy(bits.view(bool))] = values
    return dense.reshape(shape)


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
