from __future__ import annotations

import pytest
import torch

from star.utils.devices import DEVICES, GIB, choose_device, known, measure, peak_memory, this_device


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-PCIE-40GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA A10G", "a10"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("Tesla V100-SXM2-32GB", "v100"),
    ],
)
def test_devices_are_known_by_what_cuda_calls_them(name: str, short: str) -> None:
    found = known(name, 7 * GIB)
    assert found is not None
    assert (found.name, found.memory, found.half) == (short, 7 * GIB, DEVICES[short].half)


def test_an_unknown_one_is_measured() -> None:
    assert known("Quantum Abacus", GIB) is None
    cpu = this_device(torch.device("cpu"))
    assert cpu.name == "cpu"
    assert cpu.memory > GIB
    assert cpu.peak(half=False) == cpu.single > 1e-4
    assert measure(torch.device("cpu"), torch.float32, side=64, times=1) > 0


def test_memory_is_this_process_peak() -> None:
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(64 * 2**20 // 4)
    assert peak_memory(torch.device("cpu")) >= before
    assert peak_memory(torch.device("cpu")) > held.numel() * 4


def test_a_device_is_there_or_refused_in_words() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") in ("cpu", "cuda")
    with pytest.raises(ValueError, match="device is auto, cpu, cuda or cuda:N, got 'gpu'"):
        choose_device("gpu")
    with pytest.raises(ValueError, match=r"device=cuda:99, but PyTorch finds \w+ GPUs here"):
        choose_device("cuda:99")
