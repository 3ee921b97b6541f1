"""A pipeline that is sped up draws what it drew before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from star.models.conditioning.word_transformer import WordTransformer
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.pipeline import STARPipeline
from star.pipeline_call import settings_of
from star.sampling.guidance import ClassifierFreeGuidance
from star.sampling.samplers import TopKTopP
from star.sampling.speed import Speed
from star.schedule import ScaleSchedule, concatenate
from star.utils.cli import compose, plain
from star.utils.instantiate import instantiate

PROMPTS = ["a red circle", "two blue squares on a white table"]
CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture
def build(
    schedule: ScaleSchedule, tokenizer: MultiScaleTokenizer, build_transformer: Callable[..., STARTransformer]
) -> Callable[..., STARPipeline]:
    """The same pipeline every time."""

    def build(precision: str = "fp32") -> STARPipeline:
        torch.manual_seed(3)
        return STARPipeline(
            text_encoder=WordTransformer(width=8, depth=1, num_heads=2, vocabulary_size=50),
            transformer=build_transformer(pooled_width=8, context_width=8),
            tokenizer=tokenizer,
            schedule=schedule,
            decoder={"guidance": ClassifierFreeGuidance(2.0), "sampler": TopKTopP(16, 0.9)},
            precision=precision,
        )

    return build


def preset(name: str, monkeypatch: pytest.MonkeyPatch) -> Speed:
    monkeypatch.setenv("STAR_CONF", str(CONF))
    speed: Speed = instantiate(plain(compose("sample", [f"speed={name}", "speed.strips_above=4"]))["speed"])
    return speed


@pytest.mark.parametrize("name", ["default", "plain"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_presets_draw_the_same_codes_and_pictures(
    build: Callable[..., STARPipeline], name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_one, fast = build(precision), build(precision).speed_up(preset(name, monkeypatch))
    *_, expected = plain_one.scales(PROMPTS, [0, 1])
    *_, found = fast.scales(PROMPTS, [0, 1])
    assert torch.equal(concatenate(found.codes), concatenate(expected.codes))
    tolerance = 1e-5 if precision == "fp32" else 0.1
    torch.testing.assert_close(fast.paint(found), plain_one.paint(expected), atol=tolerance, rtol=0)


def test_small_cards_draw_nearly_the_same(build: Callable[..., STARPipeline], monkeypatch: pytest.MonkeyPatch) -> None:
    fast = build().speed_up(preset("small_card", monkeypatch))
    difference = fast.draw(PROMPTS, [0, 1]) - build().draw(PROMPTS, [0, 1])
    assert difference.abs().mean() < 0.01
    assert settings_of(fast, fast.decoder)["speed"] == {"decoder_dtype": "bf16"}
    assert "speed" not in settings_of(build(), fast.decoder)


def test_the_text_encoder_is_there_only_while_it_reads(build: Callable[..., STARPipeline]) -> None:
    pipeline = build()
    places: list[str] = []
    encoder: Any = pipeline.text_encoder
    move, read = encoder.to, encoder.forward
    encoder.to = lambda device: places.append(f"to {device}") or move(device)
    encoder.forward = lambda captions: places.append("read") or read(captions)
    pipeline.speed_up(Speed(offload_text_encoder=True)).draw(PROMPTS, [0, 1])
    assert places == [f"to {pipeline.device}", "read", "read", "to cpu"]


def test_held_weights_are_not_saved(build: Callable[..., STARPipeline], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"speed\.weights=packed.*opened without"):
        build().speed_up(Speed(weights="packed")).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    build().speed_up(Speed(channels_last=True)).save_pretrained(tmp_path / "saved")
    again = STARPipeline.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(again.draw(PROMPTS, [0, 1]), build().draw(PROMPTS, [0, 1]), atol=1e-5, rtol=0)


def test_a_preset_set_later_keeps_the_speed(build: Callable[..., STARPipeline]) -> None:
    pipeline = build().speed_up(Speed(skip_guidance=False))
    pipeline.set_preset({"sampler": TopKTopP(3, 0.9)})
    assert pipeline.decoder.speed == Speed(skip_guidance=False)


def test_previews_are_small_and_grow(build: Callable[..., STARPipeline]) -> None:
    """Scales of 1, 2, 3 and 4 tokens at factor 2; an eighth of the last is less than one."""
    pipeline = build()
    shapes = [tuple(pipeline.paint(state, preview=True).shape) for state in pipeline.scales(PROMPTS, [0, 1])]
    assert shapes == [(2, 3, 2, 2)] * 4
    *_, state = pipeline.scales(PROMPTS, [0, 1])
    sizes = [tuple(pipeline.decoder.preview(state, side).shape[2:]) for side in (1, 2, 4, 9)]
    assert sizes == [(2, 2), (4, 4), (8, 8), (8, 8)]
    assert torch.equal(pipeline.decoder.preview(state, 4), pipeline.paint(state))
