from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from star.checkpoints.official import (
    dump_refiner,
    dump_tokenizer,
    dump_transformer,
    load_class_labels,
    load_refiner,
    load_refiner_with_report,
    load_tokenizer,
    load_tokenizer_with_report,
    load_transformer,
    load_transformer_with_report,
)
from star.models.refiner import Refiner
from star.models.tokenizer.autoencoder import Decoder, Encoder
from star.models.tokenizer.quantizer import MultiScaleVQ
from star.models.tokenizer.residual_conv import ResidualConv
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.masks import ScaleMask
from star.nn.position import AbsolutePosition, Rotary2D
from star.schedule import ScaleSchedule
from star.types import Condition

LAYOUT = json.loads((Path(__file__).parents[1] / "golden" / "checkpoint_layout.json").read_text())["models"]
GENERATORS = [name for name in LAYOUT if not name.startswith("vae")]
SCHEDULE = ScaleSchedule.square(1, 2, 3)
SIZES = {
    "depth": 2,
    "width": 32,
    "num_heads": 4,
    "codebook_size": 24,
    "code_width": 8,
    "pooled_width": 12,
    "num_levels": 3,
}


def released(name: str) -> tuple[dict[str, Tensor], ScaleSchedule]:
    """A released state dict on the meta device, and its schedule."""
    keys = LAYOUT[name]["keys"]
    tensors = {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for key, (shape, dtype, _) in keys.items()
    }
    return tensors, ScaleSchedule.square(*LAYOUT[name]["patch_nums"])


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def star(**changes: Any) -> STARTransformer:
    return STARTransformer(**SIZES | {"context_width": 20, "position": Rotary2D()} | changes)


def var(adaptive_norm: str) -> STARTransformer:
    position = AbsolutePosition(32, schedule=SCHEDULE)
    return star(pooled_width=32, context_width=None, position=position, adaptive_norm=adaptive_norm)


def tokenizer(**changes: Any) -> MultiScaleTokenizer:
    options = {"channels": 32, "multipliers": (1, 2), "num_res_blocks": 1, "code_width": 8} | changes
    phi = ResidualConv(8, count=options.pop("count", 4))
    return MultiScaleTokenizer(
        encoder=Encoder(**options), decoder=Decoder(**options), quantizer=MultiScaleVQ(24, 8, phi=phi), conv_size=1
    )


def randomised(model: torch.nn.Module) -> Any:
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", GENERATORS)
def test_every_released_generator_opens_and_is_written_back(name: str) -> None:
    tensors, schedule = released(name)
    model, report = load_transformer_with_report(tensors, schedule=schedule)
    unused = {leftover.name for leftover in report.leftovers}
    parameters = {key: tensor for key, tensor in tensors.items() if LAYOUT[name]["keys"][key][2] == "param"}
    left = unused & set(parameters)
    assert (
        count(model) == report.parameters == LAYOUT[name]["total_params"] - sum(parameters[key].numel() for key in left)
    )
    assert left == {"class_emb.weight"} | set(LAYOUT[name].get("sampler_only_keys", ())) & set(parameters)
    written = dump_transformer(model, class_embedding=tensors["class_emb.weight"])
    if "sampler" in name:
        written |= dump_refiner(load_refiner(tensors, schedule=schedule))
    assert shapes(written) == shapes(tensors)


def test_the_released_sampler_opens() -> None:
    tensors, schedule = released("star-d30-1024-sampler")
    refiner, report = load_refiner_with_report(tensors, schedule=schedule)
    assert count(refiner) == report.parameters == LAYOUT["star-d30-1024-sampler"]["sampler_only_params"]
    assert refiner.depth == 3


@pytest.mark.parametrize("name", [name for name in LAYOUT if name.startswith("vae")])
def test_the_released_tokenizer_opens_and_is_written_back(name: str) -> None:
    keys = LAYOUT["vae_ch160v4096z32"]["keys"] | LAYOUT[name].get("keys", {})
    tensors = {key: torch.empty(shape, device="meta") for key, (shape, _, _) in keys.items()}
    schedule = ScaleSchedule.square(*LAYOUT["vae_ch160v4096z32"]["patch_nums"])
    model, report = load_tokenizer_with_report(tensors, schedule=schedule)
    assert count(model) == report.parameters == LAYOUT[name]["total_params"]
    assert [leftover.name for leftover in report.leftovers] == ["quantize.ema_vocab_hit_SV"]
    hits = {"quantize.ema_vocab_hit_SV": tuple(tensors["quantize.ema_vocab_hit_SV"].shape)}
    assert shapes(dump_tokenizer(model, schedule=schedule)) | hits == shapes(tensors)


@pytest.mark.parametrize(
    "model",
    [
        star(),
        star(context_width=None),
        star(position=AbsolutePosition(32, schedule=SCHEDULE)),
        star(mlp_ratio=2.5, width=128, num_heads=2, qk_norm=False),
        var("own"),
        var("shared"),
    ],
    ids=["star", "no cross-attention", "absolute", "no QK-norm", "AdaLN", "shared AdaLN"],
)
def test_a_generator_survives_the_way_to_the_release_and_back(model: STARTransformer) -> None:
    randomised(model)
    back = load_transformer(dump_transformer(model), schedule=SCHEDULE)
    assert same(model, back)
    assert back.num_heads == model.num_heads


@pytest.mark.parametrize(
    "changes", [{}, {"count": 1}, {"attention": False, "patch_size": 2}, {"multipliers": (1, 2, 4)}]
)
def test_a_tokenizer_survives_the_way_to_the_release_and_back(changes: dict[str, Any]) -> None:
    model = randomised(tokenizer(**changes))
    assert same(model, load_tokenizer(dump_tokenizer(model, schedule=SCHEDULE), schedule=SCHEDULE))


def test_a_tokenizer_with_one_phi_for_each_scale() -> None:
    model = randomised(tokenizer(count=3))
    written = {name.replace("qresi_ls.", ""): tensor for name, tensor in dump_tokenizer(model).items()}
    assert same(model, load_tokenizer(written, schedule=SCHEDULE))


def test_a_refiner_survives_the_way_to_the_release_and_back() -> None:
    model = randomised(Refiner(**SIZES | {"depth": 3}, position=Rotary2D()))
    beside = dump_transformer(randomised(star()))
    both = beside | dump_refiner(model)
    assert same(model, load_refiner(both, schedule=SCHEDULE))
    assert same(load_transformer(both, schedule=SCHEDULE), load_transformer(beside, schedule=SCHEDULE))


def test_a_refiner_that_the_release_cannot_hold_is_not_written() -> None:
    with pytest.raises(ValueError, match="those of 3 by 3 tokens"):
        dump_refiner(Refiner(**SIZES, position=Rotary2D(), neighbourhood=3))


def test_class_labels_are_the_embedding_and_its_last_row_no_class() -> None:
    embedding = torch.randn(11, 32)
    labels = load_class_labels(dump_transformer(var("own"), class_embedding=embedding))
    assert torch.equal(labels(["3", ""]).pooled, embedding[[3, 10]])
    with pytest.raises(ValueError, match="class_emb"):
        load_class_labels(dump_transformer(star()))


def test_a_shorter_schedule_is_the_beginning_of_a_longer_one() -> None:
    whole = randomised(star(position=AbsolutePosition(32, schedule=SCHEDULE)))
    model, report = load_transformer_with_report(dump_transformer(whole), schedule=ScaleSchedule.square(1, 2))
    assert torch.equal(model.level.weight, whole.level.weight[:2])
    assert torch.equal(model.position.table, whole.position.table[:5])
    assert "first 2 of 3 scales" in str(report)


@pytest.mark.parametrize(
    ("schedule", "match"),
    [
        (ScaleSchedule.square(1, 2, 3, 4), "trained on 3 scales"),
        (ScaleSchedule.square(1, 3), "isn't the beginning"),
        (ScaleSchedule.square(1, 2, 4), "isn't the beginning"),
        (SCHEDULE.only(0, 2), "whole schedule"),
    ],
)
def test_another_schedule_is_refused(schedule: ScaleSchedule, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_transformer(dump_transformer(var("own")), schedule=schedule)


def test_absolute_positions_refuse_what_they_were_not_learned_for() -> None:
    tensors = dump_transformer(star(position=AbsolutePosition(32, schedule=SCHEDULE)))
    for sides in ((1, 2, 4), (1, 4)):
        with pytest.raises(ValueError, match="14 positions for 3 scales"):
            load_transformer(tensors, schedule=ScaleSchedule.square(*sides))


def test_everything_that_does_not_fit_is_in_one_table() -> None:
    tensors = dump_transformer(star())
    del tensors["word_embed.weight"], tensors["blocks.1.attn.scale_mul_1H11"], tensors["lvl_embed.weight"]
    tensors["blocks.0.ffn.fc1.bias"] = torch.zeros(7)
    tensors["pos_start"] = torch.zeros(1, 1, 33)
    tensors["novelty.weight"] = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="3 missing, 1 unexpected, 2 reshaped") as caught:
        load_transformer(tensors, schedule=SCHEDULE)
    lines = str(caught.value).splitlines()
    for name, ours, theirs in (
        ("word_embed.weight", "32x1", "missing"),
        ("blocks.1.attn.scale_mul_1H11", "1x4x1x1", "missing"),
        ("lvl_embed.weight", "3x32", "missing"),
        ("blocks.0.ffn.fc1.bias", "128", "7"),
        ("pos_start", "1x1x32", "1x1x33"),
        ("novelty.weight", "unexpected", "2x2"),
    ):
        assert [name, ours, theirs] in [line.split() for line in lines]


@pytest.mark.parametrize("adaptive_norm", ["own", "shared"])
def test_class_conditional_var_without_its_positions_is_not_taken_for_a_rotary_model(adaptive_norm: str) -> None:
    tensors = dump_transformer(var(adaptive_norm))
    del tensors["pos_1LC"]
    with pytest.raises(ValueError, match=r"1 missing, 0 unexpected, 0 reshaped(.|\n)*pos_1LC +1x14x32 +missing"):
        load_transformer(tensors, schedule=SCHEDULE)


@pytest.mark.parametrize("changed", [torch.zeros(2, 32), torch.zeros(0), torch.zeros(1, 3, 32)])
def test_a_schedule_that_does_not_fit_stands_below_the_table(changed: Tensor) -> None:
    tensors = dump_transformer(var("own")) | {"lvl_embed.weight": changed, "novelty": torch.zeros(2)}
    del tensors["lvl_1L"], tensors["word_embed.bias"]
    with pytest.raises(ValueError, match="1 missing, 1 unexpected, 1 reshaped") as caught:
        load_transformer(tensors, schedule=SCHEDULE)
    assert all(name in str(caught.value) for name in ("lvl_embed.weight", "word_embed.bias", "novelty"))
    assert ("trained on 2 scales" in str(caught.value).splitlines()[-1]) == (changed.shape == (2, 32))


@pytest.mark.parametrize("shape", [(0,), (1, 1, 14, 32), (1, 15, 32)])
def test_positions_of_another_shape_are_in_the_table(shape: tuple[int, ...]) -> None:
    tensors = dump_transformer(var("own")) | {"pos_1LC": torch.zeros(shape)}
    with pytest.raises(ValueError, match=rf"1 reshaped(.|\n)*pos_1LC +1x14x32 +{'x'.join(map(str, shape))}"):
        load_transformer(tensors, schedule=SCHEDULE)
    with pytest.raises(ValueError, match="pos_1LC +1x5x32") if len(shape) != 3 else nullcontext():
        load_transformer(tensors, schedule=ScaleSchedule.square(1, 2))


@pytest.mark.parametrize("dtype", [torch.long, torch.complex64])
def test_weights_are_real_numbers(dtype: torch.dtype) -> None:
    tensors = dump_transformer(star()) | {"pos_start": torch.zeros(1, 1, 32, dtype=dtype)}
    with pytest.raises(ValueError, match=r"aren't real numbers: pos_start \(torch"):
        load_transformer(tensors, schedule=SCHEDULE)


def test_the_wrong_reader_says_what_the_file_holds() -> None:
    generator, vae = dump_transformer(star()), dump_tokenizer(tokenizer())
    with pytest.raises(ValueError, match=r"no tokenizer.*'encoder\.down.*'pos_start'|no tokenizer"):
        load_tokenizer(generator, schedule=SCHEDULE)
    with pytest.raises(ValueError, match="no transformer"):
        load_transformer(vae, schedule=SCHEDULE)
    with pytest.raises(ValueError, match="no causal-driven sampler"):
        load_refiner(generator, schedule=SCHEDULE)
    with pytest.raises(ValueError, match="isn't a released state dict"):
        load_transformer({"state_dict": generator}, schedule=SCHEDULE)


def test_heads_without_qk_norm_are_told() -> None:
    tensors = dump_transformer(star(qk_norm=False))
    with pytest.raises(ValueError, match="give num_heads"):
        load_transformer(tensors, schedule=SCHEDULE)
    assert load_transformer(tensors, schedule=SCHEDULE, num_heads=4).num_heads == 4
    with pytest.raises(ValueError, match="has 4 heads, not num_heads=2"):
        load_transformer(dump_transformer(star()), schedule=SCHEDULE, num_heads=2)


def test_dtype_is_the_files_unless_asked_for_or_mixed() -> None:
    half = {name: tensor.half() for name, tensor in dump_transformer(star()).items()}
    assert load_transformer(half, schedule=SCHEDULE).embed.weight.dtype == torch.float16
    assert load_transformer(half, schedule=SCHEDULE, dtype=torch.bfloat16).embed.weight.dtype == torch.bfloat16
    mixed = half | {"pos_start": half["pos_start"].float()}
    assert load_transformer(mixed, schedule=SCHEDULE).embed.weight.dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_16_bits_runs_under_autocast_and_has_an_fp32_head(dtype: torch.dtype) -> None:
    tensors = dump_transformer(star())
    condition = Condition(torch.randn(2, 12), torch.randn(2, 5, 20), torch.ones(2, 5, dtype=torch.bool))
    inputs = torch.randn(2, 13, 8), condition, SCHEDULE
    with torch.autocast("cpu", dtype):
        logits = load_transformer(tensors, schedule=SCHEDULE, dtype=dtype)(*inputs)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, load_transformer(tensors, schedule=SCHEDULE)(*inputs), rtol=0.1, atol=0.02)


def test_the_report_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="star.checkpoints.official"):
        load_transformer(dump_transformer(star(), class_embedding=torch.zeros(5, 32)), schedule=SCHEDULE)
    assert "class_emb.weight, 160 numbers (class embedding, which STAR never uses)" in caplog.text


def test_a_model_that_the_release_does_not_know_is_not_written() -> None:
    with pytest.raises(ValueError, match="without level embeddings"):
        dump_transformer(star(level_embedding=False))
    with pytest.raises(ValueError, match="a scale sees all earlier ones, in this model only 1"):
        dump_transformer(star(mask=ScaleMask(1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 8}, "groups is 8, there 32, groups of the decoder is 8, there 32"),
        ({"ratio": 0.25}, "ratio of phi is 0.25, there 0.5"),
        ({"composition": "independent"}, "composition is independent, there residual"),
    ],
)
def test_a_tokenizer_that_the_release_would_read_in_another_way_is_not_written(
    change: dict[str, Any], message: str
) -> None:
    written = tokenizer(**{name: value for name, value in change.items() if name == "groups"})
    written.quantizer.phi.ratio = change.get("ratio", 0.5)
    written.quantizer.composition = change.get("composition", "residual")
    with pytest.raises(ValueError, match=message):
        dump_tokenizer(written)
