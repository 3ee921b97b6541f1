"""Which way attention over scales is computed: all give the same numbers, at different costs."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch

BACKENDS = ("auto", "prefix", "matmul", "dense", "flex")
MATMUL_LENGTH = 1024  # tried up to here scale by scale; all L x L scores at once cost more beyond it than SDPA on a CPU
FLEX_LENGTH = 512  # below it a kernel a scale is soon done, and compiling one for all takes longer than it ever saves
FLEX_HEAD_WIDTH = 16  # the narrowest head that FlexAttention's kernels take


def choose(device: str, dtype: torch.dtype, length: int, *, head_width: int, whole_scales: bool) -> str:
    """What `auto` means.

    On a CPU: `matmul` for short bf16 sequences, for which the fused kernel's backward is slow, else `prefix`. On CUDA:
    `flex` for long 16-bit sequences, one kernel in place of one a scale, else `prefix`. Elsewhere `prefix`, which runs
    wherever SDPA does. `dense` is for comparison and never chosen.

    Args:
        device: type of the device.
        dtype: of queries, keys and values.
        length: keys, `L`.
        head_width: channels of a head, `d`.
        whole_scales: what a query sees is a run of whole scales, and no selection of tokens.

    """
    if device == "cpu":
        return "matmul" if dtype == torch.bfloat16 and length <= MATMUL_LENGTH else "prefix"
    suits = dtype in (torch.float16, torch.bfloat16) and length >= FLEX_LENGTH and head_width >= FLEX_HEAD_WIDTH
    return "flex" if device == "cuda" and suits and whole_scales and _has_triton() else "prefix"


@cache
def _has_triton() -> bool:
    """Whether kernels for a GPU can be compiled here."""
    return importlib.util.find_spec("triton") is not None
