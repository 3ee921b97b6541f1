from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from star.checkpoints.tensors import ALIGNMENT, read_tensors, write_tensors

TENSORS = {
    "odd": torch.randn(3, 1, 1),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 4),
    "half": torch.randn(5, 7).half(),
    "bfloat": torch.randn(16, 16).bfloat16(),
    "double": torch.randn(3).double(),
    "codes": torch.arange(5),
    "mask": torch.tensor([True, False, True]),
    "turned": torch.randn(4, 6).T,
    "even": torch.randn(8, 16),
}


def test_what_is_written_is_read_back_by_us_and_by_the_library(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", TENSORS)
    for read in (read_tensors, load_file):
        found = read(tmp_path / "x.safetensors")
        assert found.keys() == TENSORS.keys()
        for name, value in TENSORS.items():
            assert found[name].dtype == value.dtype
            assert torch.equal(found[name], value)


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "x.safetensors")
    assert torch.equal(read_tensors(tmp_path / "x.safetensors")["a"], torch.ones(3))


def test_whole_blocks_lie_where_pytorch_would_put_them(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", TENSORS)
    for name, value in read_tensors(tmp_path / "x.safetensors").items():
        if value.numel() and value.nbytes % ALIGNMENT == 0:
            assert value.data_ptr() % ALIGNMENT == 0, name
        assert value.numel() == 0 or value.data_ptr() % value.element_size() == 0


def test_a_dtype_changes_floating_point_tensors_alone(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", TENSORS, dtype=torch.float16)
    found = read_tensors(tmp_path / "x.safetensors")
    assert torch.equal(found["even"], TENSORS["even"].half())
    assert torch.equal(found["codes"], TENSORS["codes"])


def test_what_cannot_be_written_or_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"waves is of torch\.complex64"):
        write_tensors(tmp_path / "x.safetensors", {"waves": torch.zeros(2, dtype=torch.complex64)})
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_tensors(tmp_path / "nowhere.safetensors")
    write_tensors(tmp_path / "whole.safetensors", TENSORS)
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"half\.safetensors is damaged"):
        read_tensors(tmp_path / "half.safetensors")
