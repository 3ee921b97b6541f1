from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from star.models.conditioning.word_transformer import WordTransformer
from star.models.refiner import Refiner
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.position import AbsolutePosition, Rotary2D
from star.pipeline import STARPipeline
from star.sampling.causal_driven import CausalDriven
from star.sampling.guidance import ClassifierFreeGuidance
from star.sampling.samplers import TopKTopP
from star.schedule import ScaleSchedule
from star.utils.png import read_fields, to_pixels

PROMPTS = ["a red circle", "two blue squares"]


@pytest.fixture
def pipeline(
    schedule: ScaleSchedule, tokenizer: MultiScaleTokenizer, build_transformer: Callable[..., STARTransformer]
) -> STARPipeline:
    return STARPipeline(
        text_encoder=WordTransformer(width=8, depth=1, num_heads=2, vocabulary_size=50),
        transformer=build_transformer(pooled_width=8, context_width=8),
        tokenizer=tokenizer,
        schedule=schedule,
        decoder={"guidance": ClassifierFreeGuidance(2.0, off_after=-2, on_from=1), "sampler": TopKTopP(16, 0.9)},
        identity="0123456789ab",
    )


def pixels(drawn: Any) -> list[np.ndarray[Any, Any]]:
    return [np.asarray(image) for image in drawn.images]


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_call_draws_what_draw_draws(pipeline: STARPipeline) -> None:
    drawn = pipeline(PROMPTS, num_images_per_prompt=2, seeds=3)
    expected = pipeline.draw([PROMPTS[0]] * 2 + [PROMPTS[1]] * 2, [3, 4, 3, 4])
    assert same(pixels(drawn), [to_pixels(image) for image in expected])
    assert drawn.seeds == [3, 4, 3, 4]
    assert drawn.prompts == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    assert drawn.images[0].size == (8, 8)


def test_batched_is_single(pipeline: STARPipeline) -> None:
    """Each picture alone, in pieces or all together, with negative prompts of its own."""
    settings: dict[str, Any] = {"guidance_scale": 3.0}
    together = pipeline(PROMPTS, negative_prompt=["red", "a long dark night"], seeds=[5, 6], **settings)
    pieces = pipeline(PROMPTS, negative_prompt=["red", "a long dark night"], seeds=[5, 6], batch_size=1, **settings)
    alone = [
        pixels(pipeline(prompt, negative_prompt=negative, seeds=seed, **settings))[0]
        for prompt, negative, seed in zip(PROMPTS, ["red", "a long dark night"], [5, 6], strict=True)
    ]
    assert same(pixels(together), pixels(pieces))
    assert same(pixels(together), alone)


def test_the_seeds_of_a_generator_draw_the_pictures_again(pipeline: STARPipeline) -> None:
    first = pipeline(PROMPTS[0], num_images_per_prompt=3, generator=torch.Generator().manual_seed(1))
    again = pipeline(PROMPTS[0], num_images_per_prompt=3, generator=torch.Generator().manual_seed(1))
    assert same(pixels(first), pixels(again))
    assert same(pixels(first), pixels(pipeline([PROMPTS[0]] * 3, seeds=first.seeds)))


def test_guidance_is_changed_for_one_call_alone(pipeline: STARPipeline) -> None:
    before = pixels(pipeline(PROMPTS, seeds=0))
    assert not same(pixels(pipeline(PROMPTS, seeds=0, guidance_scale=9.0)), before)
    assert same(pixels(pipeline(PROMPTS, seeds=0, guidance_scale=2.0)), before)
    assert same(pixels(pipeline(PROMPTS, seeds=0)), before)
    pipeline.set_preset({"sampler": TopKTopP(16, 0.9)})
    plain = pixels(pipeline(PROMPTS, seeds=0))
    assert same(pixels(pipeline(PROMPTS, seeds=0, guidance_scale=0.0)), plain)


def test_files_say_what_they_were_drawn_from(pipeline: STARPipeline, tmp_path: Path) -> None:
    drawn = pipeline(PROMPTS[0], negative_prompt="fog", seeds=7, guidance_scale=1.5)
    drawn.images[0].save(tmp_path / "image.png")
    fields = read_fields(tmp_path / "image.png")
    assert (fields["prompt"], fields["negative_prompt"], fields["seed"]) == (PROMPTS[0], "fog", "7")
    assert fields["weights"] == "0123456789ab"
    settings = json.loads(fields["settings"])
    assert settings["sampling"]["guidance"]["scale"] == 1.5
    assert settings["sampling"]["guidance"]["off_after"] == -2
    assert settings["sampling"]["guidance"]["on_from"] == 1
    assert settings["sampling"]["sampler"]["top_k"] == 16
    assert settings["schedule"] == str(pipeline.schedule)


def test_a_callback_sees_the_picture_grow(pipeline: STARPipeline) -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []
    last: list[torch.Tensor] = []

    def look(pipe: STARPipeline, k: int, state: Any) -> None:
        seen.append((k, tuple(pipe.paint(state).shape)))
        last.append(pipe.paint(state))

    drawn = pipeline(PROMPTS, seeds=1, callback_on_scale_end=look, progress=True)
    assert seen == [(k, (2, 3, 8, 8)) for k in range(len(pipeline.schedule))]
    assert same(pixels(drawn), [to_pixels(image) for image in last[-1]])


def test_other_schedules_are_drawn_where_the_model_can(pipeline: STARPipeline) -> None:
    oblong = ScaleSchedule(((1, 1), (2, 2), (3, 6)))
    assert pipeline(PROMPTS[0], seeds=0, schedule=oblong, height=6, width=12).images[0].size == (12, 6)
    assert pipeline(PROMPTS[0], seeds=0, height=8, width=8).images[0].size == (8, 8)
    for wrong, message in [
        (ScaleSchedule(((2, 2), (4, 4))), "doesn't begin as the model's"),
        (ScaleSchedule.square(1, 2, 3, 4, 5), "has 5 maps, the model knows 4 levels"),
    ]:
        with pytest.raises(ValueError, match=message):
            pipeline(PROMPTS[0], schedule=wrong)


def test_a_schedule_has_to_suit_the_refiner_too(
    pipeline: STARPipeline, build_transformer: Callable[..., STARTransformer]
) -> None:
    """A generator without level embeddings draws any number of maps."""
    sizes = {"width": 32, "num_heads": 4, "codebook_size": 32, "code_width": 8, "pooled_width": 8, "num_levels": 4}
    longer = ScaleSchedule.square(1, 2, 3, 4, 5)
    pipeline.transformer = build_transformer(pooled_width=8, context_width=8, level_embedding=False).eval()
    pipeline.refiner = Refiner(position=Rotary2D(), **sizes).eval()  # type: ignore[arg-type]
    pipeline.set_preset({"sampler": CausalDriven(steps=2, first_scale=-1)})
    assert pipeline(PROMPTS[0], seeds=0).images
    with pytest.raises(ValueError, match="has 5 maps, the refiner knows 4 levels"):
        pipeline(PROMPTS[0], schedule=longer)
    pipeline.set_preset({"sampler": TopKTopP(16, 0.9)})
    assert pipeline(PROMPTS[0], seeds=0, schedule=longer).images


def test_a_model_with_learned_positions_says_so(
    pipeline: STARPipeline, build_transformer: Callable[..., STARTransformer]
) -> None:
    position = AbsolutePosition(32, schedule=pipeline.schedule)
    pipeline.transformer = build_transformer(pooled_width=8, context_width=8, position=position)
    with pytest.raises(ValueError, match=r"can't draw the schedule '1 2 5': absolute positions"):
        pipeline(PROMPTS[0], schedule=ScaleSchedule.square(1, 2, 5))


def test_what_can_not_be_drawn_is_said(pipeline: STARPipeline) -> None:
    with pytest.raises(ValueError, match=r"height=512, width=512, but the schedule .* draws 8 x 8 .* 256 x 256"):
        pipeline(PROMPTS[0], height=512, width=512)
    with pytest.raises(ValueError, match="batch_size is a whole number of at least 1, got 0"):
        pipeline(PROMPTS[0], batch_size=0)
    with pytest.raises(ValueError, match="guidance scale can't be negative"):
        pipeline(PROMPTS[0], guidance_scale=-1)
    pipeline.decoder.guidance = lambda c, u, k, schedule: c  # type: ignore[assignment]
    with pytest.raises(ValueError, match="guidance_scale can't change a function"):
        pipeline(PROMPTS[0], guidance_scale=1)
