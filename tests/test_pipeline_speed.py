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
from star.pipeline_call import choose_decoder, settings_of
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
    plain = build()
    assert "speed" not in settings_of(plain, plain.decoder)


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


def test_held_weights_stay_what_they_are(build: Callable[..., STARPipeline], tmp_path: Path) -> None:
    """Neither are they saved as if nothing had happened, nor other ones silently left out."""
    pipeline = build("bf16").speed_up(Speed(weights="cast"))
    before = pipeline.draw(PROMPTS, [0, 1])
    for other in (Speed(), Speed(weights="packed")):
        with pytest.raises(ValueError, match=rf"speed\.weights=cast.*anew for speed\.weights={other.weights}"):
            pipeline.speed_up(other)
    assert torch.equal(pipeline.draw(PROMPTS, [0, 1]), before)
    assert pipeline.speed_up(Speed(weights="cast", channels_last=True)).decoder.speed.channels_last
    with pytest.raises(ValueError, match="opened without"):
        pipeline.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"decoder_dtype": "fp8", "weights": "cast"}, "'fp8'"),
        ({"compile": "graphs", "weights": "cast"}, "which a search rearranges"),
    ],
)
def test_what_is_refused_changes_nothing(
    build: Callable[..., STARPipeline], wrong: dict[str, Any], message: str, tmp_path: Path
) -> None:
    pipeline = build("bf16")
    pipeline.set_preset({"sampler": TopKTopP(3, 0.9), "search": lambda state, k: state})
    with pytest.raises(ValueError, match=message):
        pipeline.speed_up(Speed(**wrong))
    assert pipeline.speed == pipeline.decoder.speed == Speed()
    assert {weight.dtype for weight in pipeline.transformer.parameters()} == {torch.float32}


def test_pictures_say_what_changed_them(build: Callable[..., STARPipeline]) -> None:
    (plain_one,) = build()("a red circle", seeds=0).images
    (fast,) = build().speed_up(Speed(decoder_dtype="bf16"))("a red circle", seeds=0).images
    assert "speed" not in plain_one.info["settings"]
    assert '"decoder_dtype": "bf16"' in fast.info["settings"]


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


def test_previews_follow_the_schedule_that_is_drawn(build: Callable[..., STARPipeline]) -> None:
    """An eighth of its last map, not of the model's own."""
    pipeline = build()
    for sizes, expected in ((((1, 1), (2, 2), (4, 4), (16, 16)), [2, 4, 4, 4]), (((1, 1), (2, 2)), [2, 2])):
        decoder = choose_decoder(pipeline, guidance_scale=None, schedule=ScaleSchedule(sizes))
        states = pipeline.scales(PROMPTS, [0, 1], decoder=decoder)
        assert [pipeline.paint(state, preview=True).shape[2] for state in states] == expected
