from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from star.models.tokenizer.frozen import Frozen, read_weights


def test_a_frozen_network_is_neither_trained_nor_saved_but_moves_along() -> None:
    owner = nn.Sequential(nn.Linear(2, 3), Frozen(nn.Linear(3, 3)))
    assert set(owner.state_dict()) == {"0.weight", "0.bias"}
    assert len(list(owner.parameters())) == 2
    owner.train().double()
    assert owner[1].network.weight.dtype == torch.float64
    assert not owner[1].network.training
    owner.load_state_dict(owner.state_dict())


def test_gradients_pass_through_it() -> None:
    x = torch.randn(1, 3, requires_grad=True)
    Frozen(nn.Linear(3, 3)).network(x).sum().backward()
    assert x.grad is not None


SOURCE = {"name": "net.pth", "source": "https://example.org/net.pth", "key": "module.weights"}


def test_weights_are_found_by_file_and_by_folder(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "net.pth")
    for path in (tmp_path, tmp_path / "net.pth", str(tmp_path / "net.pth")):
        assert torch.equal(read_weights(path, **SOURCE)["a"], torch.ones(2))


@pytest.mark.parametrize("path", [None, "nowhere.pth", "."])
def test_a_missing_file_is_named_with_its_source_and_its_key(
    path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"net\.pth from https://example.org/net.pth and set module.weights"):
        read_weights(path, **SOURCE)
