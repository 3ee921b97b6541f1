from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from star.callbacks.ema import EMA
from star.models.conditioning.word_transformer import WordTransformer
from star.models.refiner import Refiner
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.position import Rotary2D
from star.objectives.masked_refinement import MaskedRefinement
from star.objectives.teacher_forcing import TeacherForcing
from star.sampling.causal_driven import CausalDriven
from star.sampling.decoder import ScaleWiseDecoder
from star.sampling.samplers import Greedy
from star.schedule import ScaleSchedule, concatenate
from star.training.generator_module import GeneratorModule
from star.training.optim import AdamW, MuonAdamW
from star.training.sampler_module import FROZEN, SamplerModule
from star.types import Batch

Build = Callable[..., STARTransformer]


def make_refiner(**changes: Any) -> Refiner:
    sizes = {"width": 32, "num_heads": 4, "codebook_size": 32, "code_width": 8, "pooled_width": 16, "num_levels": 4}
    return Refiner(**sizes | {"position": Rotary2D()} | changes)


@pytest.fixture
def build(
    build_transformer: Build, tokenizer: MultiScaleTokenizer, schedule: ScaleSchedule
) -> Callable[..., SamplerModule]:
    def module(**changes: Any) -> SamplerModule:
        parts = {
            "refiner": make_refiner(drop_path=0.5),
            "transformer": build_transformer(pooled_width=16, context_width=16, drop_path=0.9),
            "tokenizer": tokenizer,
            "text_encoder": WordTransformer(width=16, depth=1, num_heads=2, vocabulary_size=50),
            "objective": MaskedRefinement(first_scale=2),
            "schedule": schedule,
            "optimizer": AdamW(1e-2),
            "decoder": partial(ScaleWiseDecoder, sampler=CausalDriven(steps=3, first_scale=2)),
        }
        return SamplerModule(**parts | changes)

    return module


@pytest.fixture
def batch() -> Batch:
    return Batch(torch.rand(8, 3, 8, 8) * 2 - 1, [f"caption {i}" for i in range(8)])


def test_only_the_refiner_is_trained(build: Callable[..., SamplerModule], batch: Batch) -> None:
    module = build()
    module.train().loss(batch, 0.1).total.backward()
    refiner = {id(parameter) for parameter in module.refiner.parameters()}
    for parameter in module.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == (id(parameter) in refiner)
    for optimizer in (AdamW(1e-3), MuonAdamW(1e-3)):
        built, _ = optimizer.build(module.named_parameters(), 10)
        assert {id(parameter) for group in built.param_groups for parameter in group["params"]} == refiner


def test_the_frozen_parts_never_train(build: Callable[..., SamplerModule], batch: Batch) -> None:
    """Their stochastic depth would make the hidden states of a batch differ from one pass to the next."""
    module = build()
    seen = []
    module.refiner.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    for _ in range(2):
        module.train().loss(batch, 0.0)
    assert torch.equal(seen[0], seen[1])
    assert module.refiner.training
    assert not any(part.training for name in FROZEN for part in module.get_submodule(name).modules())


def test_it_begins_where_the_generator_is(build: Callable[..., SamplerModule], batch: Batch) -> None:
    module = build()
    module.begin()
    scalars = module.eval().loss(batch, 0.0, every_token=True).scalars
    assert scalars["accuracy"] == pytest.approx(float(scalars["generator_accuracy"]), abs=0.1)
    before = {name: value.clone() for name, value in module.refiner.state_dict().items()}
    module.adopt_head = False
    module.begin()
    assert all(torch.equal(value, before[name]) for name, value in module.refiner.state_dict().items())


def test_validation_knows_half_of_the_tokens(build: Callable[..., SamplerModule], batch: Batch) -> None:
    module, shares = build(), []
    module.refiner.register_forward_pre_hook(lambda _, given: shares.append(given[2].float().mean()))
    for _ in range(20):
        module.loss(batch, 0.0, every_token=True)
    assert torch.stack(shares).mean() == pytest.approx(0.5, abs=0.03)


def test_cached_codes_are_those_of_the_images(build: Callable[..., SamplerModule], batch: Batch) -> None:
    module = build().eval()
    codes = concatenate(module.tokenizer.encode(batch.images, module.schedule))
    cached = Batch(torch.empty(8, 3, 0, 0), batch.captions, codes=codes)
    totals = []
    for each in (batch, cached):
        torch.manual_seed(1)
        totals.append(module.loss(each, 0.0).total)
    assert torch.equal(totals[0], totals[1])


def test_pictures_are_drawn_with_the_refiner_in_training(build: Callable[..., SamplerModule], batch: Batch) -> None:
    module = build().eval()
    shown = module.sample_images(batch.first(2))
    with torch.no_grad():
        module.refiner.head.logits.bias[3] += 100
    again = module.sample_images(batch.first(2))
    assert shown["samples"].shape == shown["real"].shape == (2, 3, 8, 8)
    assert not torch.equal(shown["samples"], again["samples"])
    assert build(decoder=None).sample_images(batch) == {}


def test_a_preset_that_needs_a_refiner_is_refused_where_there_is_none(
    build: Callable[..., SamplerModule],
) -> None:
    module = build()
    parts = {name: getattr(module, name) for name in ("transformer", "tokenizer", "text_encoder", "schedule")}
    preset = partial(ScaleWiseDecoder, sampler=CausalDriven())
    with pytest.raises(ValueError, match="needs a refiner"):
        GeneratorModule(**parts, objective=TeacherForcing(), optimizer=AdamW(1e-3), decoder=preset)


def test_a_refiner_of_other_sizes_is_refused(build: Callable[..., SamplerModule]) -> None:
    with pytest.raises(ValueError, match="the refiner has width 64 and 32 codes, the generator 32 and 32"):
        build(refiner=make_refiner(width=64))


def test_a_preset_that_leaves_the_refiner_out_is_said(
    build: Callable[..., SamplerModule], caplog: pytest.LogCaptureFixture
) -> None:
    build()
    build(decoder=None)
    assert not caplog.records
    build(decoder=partial(ScaleWiseDecoder, sampler=Greedy()))
    assert "doesn't use the refiner: choose one that does, sampling=causal_driven" in caplog.text


def fit(module: SamplerModule, batch: Batch, folder: Path, steps: int, **arguments: Any) -> tuple[Trainer, EMA]:
    ema = EMA(0.9)
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=[ema],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    loader = DataLoader([batch], batch_size=None)
    trainer.fit(module, loader, loader, **arguments)
    return trainer, ema


@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*")
def test_a_checkpoint_is_complete_and_averages_the_refiner_alone(
    build: Callable[..., SamplerModule], batch: Batch, tmp_path: Path
) -> None:
    module = build()
    frozen = {name: value.clone() for name, value in module.state_dict().items() if not name.startswith("refiner.")}
    trainer, _ = fit(module, batch, tmp_path, 3)
    trainer.save_checkpoint(tmp_path / "sampler.ckpt")
    held = torch.load(tmp_path / "sampler.ckpt", weights_only=True)
    assert {name.partition(".")[0] for name in held["state_dict"]} == {"refiner", *FROZEN}
    assert all(torch.equal(held["state_dict"][name], value) for name, value in frozen.items())
    assert {name.partition(".")[0] for name in held["averaged"]["weights"]} == {"refiner"}
    resumed = build()
    again, ema = fit(resumed, batch, tmp_path, 5, ckpt_path=tmp_path / "sampler.ckpt", weights_only=True)
    assert again.global_step == 5
    assert ema.updates == 5
    state = resumed.state_dict()
    assert all(torch.equal(state[name], value) for name, value in frozen.items())
