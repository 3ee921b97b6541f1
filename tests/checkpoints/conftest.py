"""Toy models in the released layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from star.checkpoints.official import dump_refiner, dump_tokenizer, dump_transformer
from star.models.refiner import Refiner
from star.models.tokenizer.autoencoder import Decoder, Encoder
from star.models.tokenizer.quantizer import MultiScaleVQ
from star.models.tokenizer.residual_conv import ResidualConv
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.position import AbsolutePosition, Rotary2D
from star.schedule import ScaleSchedule

CONF = Path(__file__).parents[2] / "conf"
SIDES = (1, 2, 3)
SIZES = {"depth": 2, "width": 32, "num_heads": 4, "codebook_size": 24, "code_width": 8, "num_levels": 3}


def _random(model: torch.nn.Module) -> Any:
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


class Toys:
    """Released files of toy size in a folder, for maps of 1, 2 and 3 tokens a side."""

    schedule = ScaleSchedule.square(*SIDES)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def star(self, **changes: Any) -> STARTransformer:
        options = {"pooled_width": 12, "context_width": 12, "position": Rotary2D()} | changes
        return _random(STARTransformer(**SIZES | options))

    def var(self, adaptive_norm: str = "own", schedule: ScaleSchedule | None = None) -> STARTransformer:
        position = AbsolutePosition(32, schedule=schedule or self.schedule)
        options = {"pooled_width": 32, "context_width": None, "adaptive_norm": adaptive_norm, "position": position}
        return self.star(**options, num_levels=len(position.schedule))

    def tokenizer(self) -> MultiScaleTokenizer:
        layers = {"channels": 32, "multipliers": (1, 2), "num_res_blocks": 1, "code_width": 8}
        quantizer = MultiScaleVQ(24, 8, phi=ResidualConv(8))
        return _random(MultiScaleTokenizer(encoder=Encoder(**layers), decoder=Decoder(**layers), quantizer=quantizer))

    def refiner(self) -> Refiner:
        return _random(Refiner(**SIZES | {"depth": 3, "pooled_width": 12, "position": Rotary2D()}))

    def write(self, name: str, held: Any) -> Path:
        path = self.folder / name
        torch.save(held, path)
        return path

    def write_star(self, name: str = "star.pth", *, tokenizer: bool = False, **changes: Any) -> Path:
        """Nested as STAR's training writes it, with the generator's schedule and perhaps the tokenizer."""
        classes = torch.zeros(1001, 32)
        trainer: dict[str, Any] = {"var_wo_ddp": dump_transformer(self.star(**changes), class_embedding=classes)}
        trainer["config"] = {"patch_nums": list(SIDES)}
        if tokenizer:
            trainer["vae_local"] = dump_tokenizer(self.tokenizer(), schedule=self.schedule)
        return self.write(name, {"epoch": 3, "iter": 0, "trainer": trainer})

    def write_var(self, name: str = "var.pth", adaptive_norm: str = "own") -> Path:
        classes = 0.2 * torch.randn(11, 32)
        return self.write(name, dump_transformer(self.var(adaptive_norm), class_embedding=classes))

    def write_sampler(self, name: str = "sampler.pth") -> Path:
        both = dump_transformer(self.star()) | dump_refiner(self.refiner())
        return self.write(name, {"trainer": {"var_wo_ddp": both, "config": {"patch_nums": list(SIDES)}}})

    def write_tokenizer(self, name: str = "vae.pth") -> Path:
        return self.write(name, dump_tokenizer(self.tokenizer(), schedule=self.schedule))


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toys:
    monkeypatch.setenv("STAR_CONF", str(CONF))
    return Toys(tmp_path)


@pytest.fixture
def same() -> Callable[[Any, Any], bool]:
    """Whether two state dicts are equal to the bit."""

    def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
        return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

    return equal
