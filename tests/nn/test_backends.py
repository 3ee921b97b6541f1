from __future__ import annotations

import pytest
import torch

from star.nn import backends
from star.nn.backends import BACKENDS, choose


@pytest.mark.parametrize(
    ("device", "dtype", "length", "head_width", "whole", "expected"),
    [
        ("cpu", torch.float32, 85, 64, True, "prefix"),
        ("cpu", torch.bfloat16, 680, 64, True, "matmul"),
        ("cpu", torch.bfloat16, 2240, 64, True, "prefix"),
        ("cuda", torch.float32, 9451, 64, True, "prefix"),
        ("cuda", torch.bfloat16, 85, 64, True, "prefix"),
        ("cuda", torch.bfloat16, 9451, 64, True, "flex"),
        ("cuda", torch.float16, 680, 64, True, "flex"),
        ("cuda", torch.bfloat16, 9451, 64, False, "prefix"),
        ("cuda", torch.bfloat16, 9451, 8, True, "prefix"),
        ("mps", torch.bfloat16, 9451, 64, True, "prefix"),
    ],
)
def test_auto_goes_by_device_dtype_and_length(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    dtype: torch.dtype,
    length: int,
    head_width: int,
    whole: bool,
    expected: str,
) -> None:
    monkeypatch.setattr(backends, "_has_triton", lambda: True)
    assert choose(device, dtype, length, head_width=head_width, whole_scales=whole) == expected
    assert expected in BACKENDS


def test_without_a_compiler_for_kernels_there_is_no_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_has_triton", lambda: False)
    assert choose("cuda", torch.bfloat16, 9451, head_width=64, whole_scales=True) == "prefix"
