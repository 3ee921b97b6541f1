from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from star.checkpoints import io
from star.checkpoints.official_writers import dump_tokenizer
from star.checkpoints.parts import with_tokenizer
from star.checkpoints.pretrained import read_pretrained, write_pretrained
from star.checkpoints.released import import_released
from star.checkpoints.to_official import write_official
from star.models.tokenizer.autoencoder import Decoder
from star.models.tokenizer.patches import PatchEncoder
from star.models.tokenizer.quantizer import MultiScaleVQ
from star.models.tokenizer.residual_conv import ResidualConv
from star.models.tokenizer.tokenizer import MultiScaleTokenizer


def read(toys: Any, kind: str) -> dict[str, Any]:
    files = {"star": "write_star", "var": "write_var", "refiner": "write_sampler", "tokenizer": "write_tokenizer"}
    return import_released(getattr(toys, files[kind])(), kind=kind, schedule=toys.schedule)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["star", "var", "tokenizer", "refiner"])
def test_ours_to_official_to_ours_is_exact(toys: Any, same: Callable[..., bool], kind: str, suffix: str) -> None:
    ours = read(toys, kind)
    write_pretrained(toys.folder / "ours", ours)
    opened = read_pretrained(toys.folder / "ours")
    write_official(opened, toys.folder / f"back{suffix}", kind=kind, what="ours")
    back = import_released(toys.folder / f"back{suffix}", kind=kind, schedule=toys.schedule)
    assert same(back["state_dict"], ours["state_dict"])
    assert back["config"] == ours["config"]


def test_star_is_nested_as_its_own_scripts_want_it(toys: Any) -> None:
    star = with_tokenizer(read(toys, "star"), read(toys, "tokenizer"), what="it")
    write_official(star, toys.folder / "back.pth", kind=None, what="it")
    held = torch.load(toys.folder / "back.pth", weights_only=True)
    assert held["trainer"]["config"] == {"patch_nums": [1, 2, 3]}
    assert held["trainer"]["var_wo_ddp"]["class_emb.weight"].shape == (1001, 32)
    assert held["trainer"]["vae_local"]["quantize.ema_vocab_hit_SV"].shape == (3, 24)


def test_var_keeps_its_classes(toys: Any) -> None:
    var = read(toys, "var")
    write_official(var, toys.folder / "back.pth", kind="var", what="it")
    held = torch.load(toys.folder / "back.pth", weights_only=True)
    assert torch.equal(held["class_emb.weight"], var["state_dict"]["text_encoder.embedding.weight"])


def test_a_sampler_comes_with_its_generator(toys: Any) -> None:
    sampler = toys.write_sampler()
    both = import_released(sampler, kind="star")
    refiner = import_released(sampler, kind="refiner")
    both["state_dict"] |= refiner["state_dict"]
    both["config"]["module"]["refiner"] = refiner["config"]["module"]["refiner"]
    write_official(both, toys.folder / "back.pth", kind="refiner", what="it")
    held = torch.load(toys.folder / "back.pth", weights_only=True)["trainer"]["var_wo_ddp"]
    recorded = torch.load(sampler, weights_only=True)["trainer"]["var_wo_ddp"]
    assert held.keys() - {"class_emb.weight"} == recorded.keys()
    assert all(torch.equal(held[name], value) for name, value in recorded.items())


def test_what_cannot_be_written_is_said(toys: Any) -> None:
    star = read(toys, "star")
    with pytest.raises(ValueError, match=r"\.pth or \.safetensors, got out=.*x\.ckpt"):
        write_official(star, toys.folder / "x.ckpt", kind="star", what="it")
    for kind in ("tokenizer", "var", "refiner"):
        with pytest.raises(ValueError, match=f"it holds no {kind}, only transformer"):
            write_official(star, toys.folder / "x.pth", kind=kind, what="it")
    write_official(star, toys.folder / "x.pth", kind="star", what="it")
    with pytest.raises(FileExistsError, match="is there already"):
        write_official(star, toys.folder / "x.pth", kind="star", what="it")
    assert not io.is_ours(toys.folder / "x.pth")


def test_an_encoder_that_the_releases_do_not_have_is_named() -> None:
    tokenizer = MultiScaleTokenizer(
        encoder=PatchEncoder(width=8, depth=1, code_width=8, patch_size=2),
        decoder=Decoder(channels=8, multipliers=(1, 2), num_res_blocks=1, code_width=8, groups=4),
        quantizer=MultiScaleVQ(16, 8, phi=ResidualConv(8)),
    )
    with pytest.raises(ValueError, match="convolutional encoder, not a PatchEncoder"):
        dump_tokenizer(tokenizer)
