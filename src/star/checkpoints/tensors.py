"""Safetensors files that are written tensor by tensor and opened without a copy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from star.utils.files import write_atomically

# Where a tensor begins changes the last digit of a matrix product: with tensors on the boundaries that PyTorch itself
# allocates on, an opened model draws the very pictures of the model that was saved.
ALIGNMENT = 64

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> None:
    """Write a .safetensors file, whole or not at all, holding no more than one tensor in memory besides those given.

    Args:
        path: where.
        tensors: by name.
        dtype: of the floating-point ones in the file; None keeps each one's own.

    Raises:
        ValueError: for a kind of tensor that the format doesn't have.
        OSError: when it can't be written.

    """
    planned = {name: _target(name, tensor, dtype) for name, tensor in tensors.items()}
    sizes = {name: tensors[name].numel() * kind.itemsize for name, kind in planned.items()}
    # The format has no gaps: what doesn't end on a boundary comes last, large elements first.
    order = sorted(planned, key=lambda name: (sizes[name] % ALIGNMENT != 0, -planned[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        end = offset + sizes[name]
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _DTYPES[planned[name]], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                _write_tensor(file, tensors[name], planned[name])

    write_atomically(path, write)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, mapped: memory is taken when they are used; the file has to stay as it is.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it isn't one, or is damaged.

    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist") from error
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or not a safetensors file: {error}") from error


def _target(name: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    if kind not in _DTYPES:
        raise ValueError(
            f"{name} is of {kind}, which can't be written: convert it to one of {', '.join(_DTYPES.values())}"
        )
    return kind


def _write_tensor(file: BinaryIO, tensor: Tensor, dtype: torch.dtype) -> None:
    value = tensor.detach().to(device="cpu", dtype=dtype).contiguous()
    if value.numel():
        file.write(value.reshape(-1).view(torch.uint8).numpy().data)
