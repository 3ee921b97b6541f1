"""Matrix products in fp32 on AMD's CPUs with AVX-512.

PyTorch multiplies fp32 matrices on a CPU by MKL, which on AMD's CPUs leaves AVX-512 unused; oneDNN, which it has on
board as well, uses it: 1.08 times as fast where a core takes such an instruction in two halves (Zen 4).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of x (..., C) and weight (N, C), without a gradient, by whichever library is faster."""
    if not faster(x, weight):
        return F.linear(x, weight, bias)
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def faster(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is: for plain fp32 tensors on such a CPU, and while nobody counts or traces PyTorch's products."""
    plain = all(type(part) in (Tensor, nn.Parameter) and part.dtype == torch.float32 for part in (x, weight))
    if not plain or x.device.type != "cpu" or not has_wide_fp32():
        return False
    return not torch.is_autocast_enabled("cpu") and _get_current_dispatch_mode() is None


@functools.cache
def has_wide_fp32() -> bool:
    """Whether this CPU multiplies fp32 faster by oneDNN than by MKL, and PyTorch has oneDNN."""
    found = torch.cpu.get_capabilities()
    known = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()
    return known and found.get("avx512_f", False) and "AMD" in str(found.get("cpu_name", ""))
