from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from star.models.tokenizer.upsampling import double_and_convolve


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3)])
def test_it_is_doubling_and_then_convolving(size: tuple[int, int], layout: torch.memory_format) -> None:
    x = torch.randn(2, 4, *size).contiguous(memory_format=layout)
    weight, bias = torch.randn(6, 4, 3, 3), torch.randn(6)
    expected = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)
    torch.testing.assert_close(double_and_convolve(x, weight, bias), expected, atol=1e-5, rtol=1e-5)


def test_the_layout_in_memory_stays() -> None:
    x = torch.randn(1, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    assert double_and_convolve(x, torch.randn(6, 4, 3, 3), None).is_contiguous(memory_format=torch.channels_last)
