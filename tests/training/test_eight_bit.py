from __future__ import annotations

import copy
import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from star.training import eight_bit
from star.training.eight_bit import AdamW8bit, pack, torchao_adamw, unpack


class Quantised(torch.Tensor):
    """Looks like the library's tensors: two plain ones and what else it needs."""

    codes: Tensor
    scale: Tensor
    signed: bool

    @staticmethod
    def __new__(cls: type[Any], codes: Tensor, scale: Tensor, signed: bool) -> Quantised:
        made = torch.Tensor._make_subclass(cls, codes * scale)
        made.codes, made.scale, made.signed = codes, scale, signed
        return made

    def __tensor_flatten__(self) -> tuple[list[str], list[Any]]:
        return ["codes", "scale"], [self.signed]

    @classmethod
    def __tensor_unflatten__(cls, tensors: dict[str, Tensor], attributes: list[Any]) -> Quantised:
        return cls(tensors["codes"], tensors["scale"], *attributes)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for torchao."""
    modules: dict[str, Any] = {
        "torchao.optim": SimpleNamespace(AdamW8bit=torch.optim.AdamW),
        "torchao.optim.subclass_8bit": SimpleNamespace(OptimState8bit=Quantised),
        "bitsandbytes": SimpleNamespace(optim=SimpleNamespace(AdamW8bit=torch.optim.AdamW)),
    }
    monkeypatch.setattr(eight_bit.importlib, "import_module", lambda name: modules[name])


def test_quantised_tensors_are_kept_as_plain_ones() -> None:
    value = Quantised(torch.arange(4.0), torch.tensor(0.5), True)
    held = unpack(value)
    assert {name: type(part) for name, part in held["tensors"].items()} == {"codes": Tensor, "scale": Tensor}
    assert held["attributes"] == [True]
    again = pack(held, Quantised)
    assert torch.equal(again, value)
    assert isinstance(again, Quantised)
    plain = torch.ones(2)
    assert unpack(plain) is plain
    assert pack(plain, Quantised) is plain


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("name", eight_bit.LIBRARIES)
def test_the_optimiser_is_the_library_s_with_our_groups_and_schedule(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eight_bit, "find_spec", lambda wanted: wanted == name or None)
    layer = torch.nn.Linear(4, 4)
    optimizer, schedule = AdamW8bit(0.1, weight_decay=0.3).build(layer.named_parameters(), 10)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert schedule.get_last_lr()[0] == pytest.approx(0.1 * 0.005)
    layer(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(state)
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], state["state"][0]["exp_avg"])


def test_without_a_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eight_bit, "find_spec", lambda _: None)
    named = list(torch.nn.Linear(2, 2).named_parameters())
    with pytest.raises(ModuleNotFoundError, match="pip install torchao"):
        AdamW8bit(0.1).build(named, 10)
    with pytest.raises(ModuleNotFoundError, match="pip install bitsandbytes"):
        AdamW8bit(0.1, library="bitsandbytes").build(named, 10)
    with pytest.raises(ValueError, match="library='other'"):
        AdamW8bit(0.1, library="other")


def test_the_real_library_resumes_to_the_bit() -> None:
    pytest.importorskip("torchao")
    assert isinstance(importlib.import_module("torchao"), ModuleType)
    assert "torchao" in sys.modules
    assert issubclass(torchao_adamw(), torch.optim.Optimizer)  # type: ignore[arg-type]
