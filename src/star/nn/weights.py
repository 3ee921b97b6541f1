"""Other ways to hold the weight of a linear layer, for drawing: narrower, or laid out for the machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("as_is", "auto", "cast", "packed", "int8")
# how many rows oneDNN is told to expect: any guess between 16 and 512 came out the same
TYPICAL_ROWS = 256

Multiply = Callable[[Tensor, Tensor | None], Tensor]


class HeldWeight(Tensor):
    """Stands where a weight (out, in) stood and knows but one thing: `F.linear(x, weight, bias)`.

    Its numbers are laid out in a way that only its own product understands, so that it can't be trained, moved or
    saved. `x` and `bias` are cast to its dtype, as autocast does with a plain weight.
    """

    product: Multiply

    @staticmethod
    def __new__(
        cls: type[HeldWeight], shape: torch.Size, dtype: torch.dtype, device: torch.device, product: Multiply
    ) -> HeldWeight:
        """A weight of which only shape, dtype, device and product are known."""
        made = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device, requires_grad=False)
        made.product = product
        return made

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Linear layers; and whatever only looks at shape, dtype and device."""
        if func is F.linear:
            return cls._linear(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def _linear(cls, input: Tensor, weight: HeldWeight, bias: Tensor | None = None) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return weight.product(input.to(weight.dtype), None if bias is None else bias.to(weight.dtype))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Nothing else."""
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise ValueError(
            f"{func} needs a weight as it was: one held for fast drawing can't be moved, trained or saved. Move a "
            "model before it draws, and save one that was opened with speed.weights=as_is"
        )


def hold(module: nn.Module, kind: str, dtype: torch.dtype) -> None:
    """Change how the weights of all linear layers in a module are held, in place.

    Args:
        module: e.g. a transformer's blocks.
        kind: `as_is`; `cast`: in `dtype` once and for all, in place of a cast at every use (the same numbers);
            `packed`: besides, in the order in which oneDNN reads them (a CPU; in 16 bits the same numbers, in fp32 up
            to rounding, and the same ones in every batch); `int8`: whole numbers and a factor per row, by torchao;
            `auto`: packed where oneDNN can, else cast.
        dtype: what the products are computed in.

    Raises:
        ValueError: for another kind, or one that this machine doesn't offer.
        ModuleNotFoundError: for `int8` without torchao.

    """
    if kind not in KINDS:
        raise ValueError(f"weights are held {', '.join(KINDS)}, got {kind!r}")
    if kind == "as_is":
        return
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and not isinstance(layer.weight, HeldWeight):
            weight = layer.weight.detach().to(dtype)
            if kind == "cast" or (kind == "auto" and not _can_pack(weight)):
                layer.weight = nn.Parameter(weight, requires_grad=False)
                continue
            held = _int8(weight) if kind == "int8" else _packed(weight)
            del layer.weight
            layer.register_buffer("weight", held)


def _can_pack(weight: Tensor) -> bool:
    offered = hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and torch.backends.mkldnn.is_available()
    if not offered or weight.device.type != "cpu":
        return False
    wide = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # older CPUs aren't
    return wide or weight.dtype == torch.float32


def _packed(weight: Tensor) -> HeldWeight:
    """A weight in oneDNN's own order."""
    if not _can_pack(weight):
        raise ValueError(
            "packed weights are oneDNN's, in fp32 on a CPU, or in bf16 on one that has AVX-512; "
            f"these are {weight.dtype} on {weight.device}: set speed.weights to cast"
        )
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS)

    def multiply(x: Tensor, bias: Tensor | None) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        return product

    return HeldWeight(weight.shape, weight.dtype, weight.device, multiply)


def _int8(weight: Tensor) -> HeldWeight:
    """A weight of whole numbers in [-128, 127] with a factor per output channel."""
    if importlib.util.find_spec("torchao") is None:
        raise ModuleNotFoundError(
            "int8 weights need torchao, which isn't installed: pip install torchao, or set speed.weights to cast"
        )
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    quantize_(layer, Int8WeightOnlyConfig())
    quantized = layer.weight

    def multiply(x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, quantized, bias)

    return HeldWeight(weight.shape, weight.dtype, weight.device, multiply)
