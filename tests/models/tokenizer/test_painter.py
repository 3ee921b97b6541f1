from __future__ import annotations

from typing import Any

import pytest
import torch

from star.models.tokenizer import painter as module
from star.models.tokenizer.autoencoder import Decoder, Encoder
from star.models.tokenizer.painter import Painter
from star.models.tokenizer.quantizer import MultiScaleVQ
from star.models.tokenizer.residual_conv import ResidualConv
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.tokenizer.upsampling import double_and_convolve

SWITCHES: list[dict[str, Any]] = [
    {},
    {"channels_last": True},
    {"fold_upsampling": True},
    {"strips_above": 1},
    {"channels_last": True, "fold_upsampling": True},
    {"channels_last": True, "strips_above": 1},
    {"fold_upsampling": True, "strips_above": 1},
]


@pytest.fixture
def tokenizer() -> MultiScaleTokenizer:
    """Factor 4, with attention and blocks that change width, whose groups have means far from 0."""
    sizes: dict[str, Any] = {"channels": 8, "multipliers": (1, 2, 4), "num_res_blocks": 1, "code_width": 6, "groups": 4}
    made = MultiScaleTokenizer(
        encoder=Encoder(**sizes), decoder=Decoder(**sizes), quantizer=MultiScaleVQ(9, 6, phi=ResidualConv(6))
    )
    for name, parameter in made.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.5)
    return made.eval()


@pytest.mark.parametrize("rows", [1, 2, 7, 100])
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_every_switch_paints_the_same_picture(
    tokenizer: MultiScaleTokenizer, switches: dict[str, Any], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strips of one row, of a few, or all rows at once; the tolerance is far below a seam of 1/255."""
    monkeypatch.setattr(module, "ROWS", rows)
    monkeypatch.setattr(module, "WORTH_FOLDING", 1)
    f_hat = torch.randn(2, 6, 5, 7)
    with torch.no_grad():
        expected = tokenizer.decode(f_hat)
    painted = Painter(tokenizer, **switches)(f_hat)
    assert painted.shape == (2, 3, 20, 28)
    torch.testing.assert_close(painted, expected, atol=2e-5, rtol=0)
    assert painted.abs().max() <= 1


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("limit", [None, 1])
def test_upsampling_is_folded_where_asked_for(
    tokenizer: MultiScaleTokenizer, fold: bool, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WORTH_FOLDING", 1)
    folded: list[int] = []
    for place in (module, module.strips):
        monkeypatch.setattr(
            place, "double_and_convolve", lambda x, *rest: folded.append(1) or double_and_convolve(x, *rest)
        )
    Painter(tokenizer, fold_upsampling=fold, strips_above=limit)(torch.randn(1, 6, 5, 7))
    assert len(folded) == (2 if fold else 0)


def test_strips_bound_what_a_convolution_sees(tokenizer: MultiScaleTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row more on each side, whatever the picture's height."""
    monkeypatch.setattr(module, "ROWS", 4)
    seen: list[int] = []
    for conv in [*(block.conv2 for block in tokenizer.decoder.levels[-1].blocks), tokenizer.decoder.out]:  # type: ignore[union-attr]
        conv.register_forward_pre_hook(lambda conv, given: seen.append(given[0].shape[2]))  # type: ignore[operator]
    Painter(tokenizer, strips_above=1)(torch.randn(1, 6, 8, 3))
    assert max(seen) == 6
    assert len(seen) == 3 * 32 // 4


def test_strips_see_the_whole_picture(tokenizer: MultiScaleTokenizer) -> None:
    """A change in one corner reaches the other, through norms and attention, as it does uncut."""
    f_hat = torch.randn(1, 6, 8, 8)
    changed = f_hat.clone()
    changed[..., 0, 0] += 3
    paint = Painter(tokenizer, strips_above=1)
    assert not torch.equal(paint(f_hat)[..., -1, -1], paint(changed)[..., -1, -1])


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_half_precision_is_near(tokenizer: MultiScaleTokenizer, switches: dict[str, Any]) -> None:
    f_hat = torch.randn(1, 6, 8, 8)
    exact = Painter(tokenizer)(f_hat)
    painted = Painter(tokenizer, dtype="bf16", **switches)(f_hat)
    assert painted.dtype == torch.float32
    assert 0 < (painted - exact).abs().mean() < 0.01


def test_a_dtype_of_its_own_overrules_autocast(tokenizer: MultiScaleTokenizer) -> None:
    f_hat = torch.randn(1, 6, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(Painter(tokenizer, dtype="fp32")(f_hat), Painter(tokenizer)(f_hat))
    with torch.autocast("cpu", torch.bfloat16):
        inside = Painter(tokenizer, dtype="fp32")(f_hat)
    assert torch.equal(inside, Painter(tokenizer)(f_hat))


def test_held_weights_are_the_cast_ones(tokenizer: MultiScaleTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cpu_has_bf16", lambda: True)
    f_hat = torch.randn(2, 6, 4, 4)
    cast, held = Painter(tokenizer, dtype="bf16"), Painter(tokenizer, dtype="bf16", hold_weights=True)
    for _ in range(2):
        assert torch.equal(held(f_hat), cast(f_hat))
    ((after, decoder),) = held._copies.values()
    assert after is not tokenizer.after
    assert decoder.stem.weight.dtype == torch.bfloat16
    assert decoder.norm.weight.dtype == tokenizer.decoder.stem.weight.dtype == torch.float32
    exact = Painter(tokenizer, hold_weights=True)
    assert torch.equal(exact(f_hat), Painter(tokenizer)(f_hat))
    assert exact._copies == {}
    assert torch.equal(exact.preview(f_hat, 2), cast.preview(f_hat, 2))
    monkeypatch.setattr(module, "cpu_has_bf16", lambda: False)  # where bf16 takes longer than all the rest
    assert torch.equal(exact.preview(f_hat, 2), Painter(tokenizer).preview(f_hat, 2))


def test_small_pictures_are_not_cut(tokenizer: MultiScaleTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[int] = []
    monkeypatch.setattr(module.strips, "finish", lambda norm, conv, x, rows: cut.append(x.shape[2]) or conv(x))
    paint = Painter(tokenizer, strips_above=16)
    paint(torch.randn(2, 6, 4, 4))
    assert cut == []
    paint(torch.randn(2, 6, 4, 5))
    assert cut == [16, 16]  # one picture at a time


def test_a_preview_is_a_small_picture_of_the_same_colours(tokenizer: MultiScaleTokenizer) -> None:
    paint = Painter(tokenizer)
    f_hat = torch.randn(1, 6, 1, 1).expand(1, 6, 8, 16).contiguous()
    assert paint.preview(f_hat, 4).shape == (1, 3, 8, 16)
    assert torch.equal(paint.preview(f_hat, 16), paint(f_hat))
    torch.testing.assert_close(paint.preview(f_hat, 8)[..., 8, 16], paint(f_hat)[..., 16, 32], atol=0.2, rtol=0)


def test_nonsense_is_refused_with_the_value(tokenizer: MultiScaleTokenizer) -> None:
    with pytest.raises(ValueError, match="'fp8'"):
        Painter(tokenizer, dtype="fp8")
    with pytest.raises(ValueError, match="got 0"):
        Painter(tokenizer, strips_above=0)
