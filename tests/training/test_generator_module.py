from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch.utils.data import DataLoader

from star.models.conditioning.word_transformer import WordTransformer
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.objectives.teacher_forcing import TeacherForcing
from star.sampling.decoder import ScaleWiseDecoder
from star.sampling.samplers import Greedy
from star.schedule import ScaleSchedule
from star.training.generator_module import GeneratorModule
from star.training.optim import AdamW
from star.types import Batch, Condition, LossReport


class Listener(WordTransformer):
    """Remembers what it was asked to encode."""

    def forward(self, captions: Sequence[str]) -> Condition:
        self.heard = list(captions)
        return super().forward(captions)


@pytest.fixture
def module(
    build_transformer: Callable[..., STARTransformer], tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule
) -> GeneratorModule:
    return GeneratorModule(
        transformer=build_transformer(pooled_width=16, context_width=16),
        tokenizer=tokenizer,
        text_encoder=Listener(width=16, depth=1, num_heads=2, vocabulary_size=50),
        objective=TeacherForcing(),
        schedule=schedule,
        optimizer=AdamW(1e-3),
        caption_dropout=0.25,
        decoder=lambda *parts: ScaleWiseDecoder(*parts, sampler=Greedy()),
    )


@pytest.fixture
def batch() -> Batch:
    return Batch(torch.rand(200, 3, 8, 8) * 2 - 1, [f"caption {i}" for i in range(200)])


def test_a_share_of_the_captions_is_emptied_in_training_alone(module: GeneratorModule, batch: Batch) -> None:
    module.train()
    module.loss(batch, module.caption_dropout)
    heard = module.text_encoder.heard
    emptied = [said == "" for said in heard]
    assert 25 < sum(emptied) < 75
    kept = zip(heard, batch.captions, strict=True)
    assert all(said == caption for said, caption in kept if said != "")
    module.loss(batch, 0.0)
    assert module.text_encoder.heard == batch.captions


def test_the_tokenizer_stays_frozen_and_quiet(module: GeneratorModule, batch: Batch) -> None:
    module.train()
    few = Batch(batch.images[:3], batch.captions[:3])
    before = [value.clone() for value in module.tokenizer.state_dict().values()]
    module.loss(few, 0.0).total.backward()
    assert not module.tokenizer.training
    assert not any(parameter.requires_grad for parameter in module.tokenizer.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, module.tokenizer.state_dict().values(), strict=True))
    optimizer, _ = module.optimizer.build(module.named_parameters(), 10)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert not held & {id(parameter) for parameter in module.tokenizer.parameters()}
    assert held == {id(p) for part in (module.transformer, module.text_encoder) for p in part.parameters()}


def test_pictures_are_drawn_beside_the_real_ones(module: GeneratorModule, batch: Batch) -> None:
    few = Batch(batch.images[:2], batch.captions[:2])
    shown = module.eval().sample_images(few)
    assert shown["samples"].shape == shown["real"].shape == (2, 3, 8, 8)
    torch.testing.assert_close(shown["real"], few.images.add(1).div(2))
    module.decoder = None
    assert module.sample_images(few) == {}


def test_cached_tokens_and_texts_stand_for_pictures_and_captions(module: GeneratorModule, batch: Batch) -> None:
    few = batch.first(5)
    codes = module.codes(few)
    features = module.tokenizer.features(few.images)
    text, empty = module.text_encoder(few.captions), module.text_encoder([""])
    parts = [(one.pooled, one.context, one.context_mask) for one in (text, empty)]
    nothing = torch.empty(5, 3, 0, 0)
    expected = module.loss(few, 0.0).total
    for known in ({"codes": torch.cat(codes, 1)}, {"features": features}):
        cached = Batch(nothing, few.captions, text=parts[0], empty=parts[1], **known)  # type: ignore[arg-type]
        assert all(torch.equal(a, b) for a, b in zip(module.codes(cached), codes, strict=True))
        module.text_encoder.heard = []
        torch.testing.assert_close(module.loss(cached, 0.0).total, expected)
        assert module.text_encoder.heard == []
    shown = module.eval().sample_images(cached)
    what_codes_keep = module.tokenizer.decode_codes(codes, module.schedule).add(1).div(2)
    torch.testing.assert_close(shown["real"], what_codes_keep)


def test_cached_texts_are_emptied_like_captions(module: GeneratorModule, batch: Batch) -> None:
    """From the same random numbers the same ones."""
    text, empty = module.text_encoder(batch.captions), module.text_encoder([""])
    parts = [(one.pooled.half(), one.context.half(), one.context_mask) for one in (text, empty)]
    cached = Batch(batch.images, batch.captions, text=parts[0], empty=parts[1])
    torch.manual_seed(3)
    ours = module.condition(cached, 0.5)
    torch.manual_seed(3)
    theirs = module.condition(batch, 0.5)
    torch.testing.assert_close(ours.pooled, theirs.pooled, atol=2e-3, rtol=2e-3)
    assert torch.equal(ours.context_mask.sum(1), theirs.context_mask.sum(1))
    assert ours.pooled.dtype == torch.float32


def test_parts_that_do_not_fit_are_named(
    build_transformer: Callable[..., STARTransformer], module: GeneratorModule, schedule: ScaleSchedule
) -> None:
    with pytest.raises(ValueError, match="width 12 .pooled. and 10"):
        GeneratorModule(
            transformer=build_transformer(),
            tokenizer=module.tokenizer,
            text_encoder=module.text_encoder,
            objective=TeacherForcing(),
            schedule=schedule,
            optimizer=AdamW(1e-3),
        )


@pytest.mark.parametrize("wanted", [False, True])
def test_a_training_from_scratch_begins_with_the_codebook_if_asked_to(module: GeneratorModule, wanted: bool) -> None:
    module.codebook_start = wanted
    before = module.transformer.head.logits.weight.clone()
    module.begin()
    assert torch.equal(before, module.transformer.head.logits.weight) is not wanted


def test_a_step_moves_the_rate_and_validation_takes_every_caption_and_token(
    module: GeneratorModule, batch: Batch, tmp_path: Path
) -> None:
    heard: dict[str, list[str]] = {}
    asked: list[bool] = []

    class Objective(TeacherForcing):
        def __call__(self, *args: Any, every_token: bool = False) -> LossReport:
            asked.append(every_token)
            return super().__call__(*args, every_token=every_token)

    class Hear(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            heard["training"] = module.text_encoder.heard

        def on_validation_batch_end(self, *_: Any) -> None:
            heard["validation"] = module.text_encoder.heard

    module.objective, module.caption_dropout = Objective(), 1.0
    module.optimizer = AdamW(1e-3, schedule=lambda step, total: 1 - step / (2 * total))
    few = batch.first(4)
    loader = DataLoader([few, few], batch_size=None)  # type: ignore[arg-type]
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2,
        callbacks=[Hear()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        limit_val_batches=1,
        default_root_dir=tmp_path,
    )
    trainer.fit(module.train(), loader, loader)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([5e-4] * 2)
    assert heard == {"training": [""] * 4, "validation": few.captions}
    assert asked == [False, False, True]
    assert {"train/loss", "val/loss", "val/accuracy/scale_03"} <= set(trainer.callback_metrics)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": 16}, "draws 16 codes of width 8, the tokenizer has 32 of width 8"),
        ({"code_width": 4}, "draws 32 codes of width 4"),
        ({"num_levels": 3}, "needs 4 levels, the generator has 3"),
    ],
)
def test_a_generator_of_other_tokens_is_refused(
    build_transformer: Callable[..., STARTransformer],
    module: GeneratorModule,
    schedule: ScaleSchedule,
    changes: dict[str, int],
    message: str,
) -> None:
    """At once, not as an index out of range in the first step."""
    with pytest.raises(ValueError, match=message):
        GeneratorModule(
            transformer=build_transformer(pooled_width=16, context_width=16, **changes),
            tokenizer=module.tokenizer,
            text_encoder=module.text_encoder,
            objective=TeacherForcing(),
            schedule=schedule,
            optimizer=AdamW(1e-3),
        )
