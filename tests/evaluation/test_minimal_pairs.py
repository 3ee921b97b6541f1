from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from star.evaluation import minimal_pairs
from star.evaluation.context import Context
from star.evaluation.minimal_pairs import MinimalPairsItem
from star.metrics.minimal_pairs import KINDS

Settings = Callable[..., dict[str, Any]]


def test_batches_do_not_matter(tiny_checkpoint: Path, settings: Settings) -> None:
    found = []
    for batch in (64, 23):
        context = Context(settings(f"ckpt={tiny_checkpoint}", f"batch={batch}"))
        found.append(MinimalPairsItem().run(context))
    assert found[0].count == found[1].count == 264 + 110 + 18 + 100 + 100
    for kind in KINDS:
        assert found[0].results["nats"][kind] == pytest.approx(found[1].results["nats"][kind], abs=1e-4)
        assert found[0].results["nats"][kind] == pytest.approx(sum(found[0].results["nats_per_scale"][kind]))
    assert 0 < found[0].value < 1  # an untrained model guesses


def reads(caption: str) -> object:
    return caption


def counts_words(caption: str) -> object:
    return sorted("a" if word == "an" else word for word in caption.split())


@pytest.mark.parametrize(("sees", "in_order"), [(reads, 1.0), (counts_words, 0.0)])
def test_words_without_order_are_not_enough(
    tiny_checkpoint: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    sees: Callable[[str], object],
    in_order: float,
) -> None:
    asked: list[list[object]] = []

    def losses(_: Context, codes: Sequence[Tensor], captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """A picture is likely under what looks like its own caption, which is asked for first."""
        asked.append([sees(caption) for caption in captions])
        true = asked[-1] if len(asked) % 2 else asked[-2]
        loss = torch.tensor([float(a != b) for a, b in zip(asked[-1], true, strict=True)])
        wide = loss[:, None].expand(-1, sum(code.shape[1] for code in codes))
        return wide, wide

    monkeypatch.setattr(minimal_pairs, "losses", losses)
    kinds = MinimalPairsItem().run(Context(settings(f"ckpt={tiny_checkpoint}", "batch=64"))).results["kinds"]
    assert kinds == {"shape": 1.0, "color": 1.0, "number": 1.0, "binding": in_order, "relation": in_order}


def test_a_tokenizer_understands_nothing(tiny_tokenizer: Path, settings: Settings) -> None:
    context = Context(settings(f"ckpt={tiny_tokenizer}"))
    assert "needs one of task=generator" in next(MinimalPairsItem().missing(context))
