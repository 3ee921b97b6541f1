from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from star.checkpoints.describe import describe
from star.checkpoints.pretrained import read_pretrained, write_pretrained
from star.checkpoints.refiner import export_refiner
from star.models.conditioning.class_label import ClassLabelEncoder
from star.models.conditioning.word_transformer import WordTransformer
from star.models.refiner import Refiner
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.position import AbsolutePosition, Rotary2D
from star.pipeline import PRECISIONS, STARPipeline
from star.sampling.causal_driven import CausalDriven
from star.sampling.guidance import ClassifierFreeGuidance
from star.sampling.samplers import Greedy, TopKTopP
from star.schedule import ScaleSchedule

PROMPTS = ["a red circle", "two blue squares"]


@pytest.fixture
def parts(
    schedule: ScaleSchedule, tokenizer: MultiScaleTokenizer, build_transformer: Callable[..., STARTransformer]
) -> dict[str, Any]:
    encoder = WordTransformer(width=8, depth=1, num_heads=2, vocabulary_size=50)
    transformer = build_transformer(pooled_width=8, context_width=8)
    decoder = {"guidance": ClassifierFreeGuidance(2.0), "sampler": TopKTopP(16, 0.9)}
    return {
        "text_encoder": encoder,
        "transformer": transformer,
        "tokenizer": tokenizer,
        "schedule": schedule,
        "decoder": decoder,
    }


@pytest.fixture
def pipeline(parts: dict[str, Any]) -> STARPipeline:
    return STARPipeline(**parts)


def class_conditional(parts: dict[str, Any], build: Callable[..., STARTransformer]) -> STARPipeline:
    position = AbsolutePosition(32, schedule=parts["schedule"])
    transformer = build(pooled_width=32, context_width=None, adaptive_norm="own", position=position)
    return STARPipeline(**parts | {"transformer": transformer, "text_encoder": ClassLabelEncoder(5, 32)})


@pytest.fixture
def checkpoint(parts: dict[str, Any], tmp_path: Path) -> Path:
    """What a training of these parts would have saved."""
    named = {name: parts[name] for name in ("text_encoder", "transformer", "tokenizer")}
    state = {f"{part}.{name}": value for part, module in named.items() for name, value in module.state_dict().items()}
    module = {name: describe(part) for name, part in {**named, "schedule": parts["schedule"]}.items()}
    preset = {"_target_": "star.sampling.decoder.ScaleWiseDecoder", "_partial_": True}
    preset |= {name: describe(part) for name, part in parts["decoder"].items()}
    config = {
        "task": "generator",
        "seed": 0,
        "module": module | {"_target_": "x", "caption_dropout": 0.1},
        "sampling": preset,
    }
    torch.save({"state_dict": state, "config": config, "optimizer_states": [1]}, tmp_path / "run.ckpt")
    return tmp_path / "run.ckpt"


def test_what_is_saved_draws_the_same_pictures(pipeline: STARPipeline, tmp_path: Path) -> None:
    before = pipeline.draw(PROMPTS, [0, 1])
    pipeline.save_pretrained(tmp_path / "saved")
    again = STARPipeline.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.draw(PROMPTS, [0, 1]), before)
    assert again.schedule == pipeline.schedule
    assert again.precision == "fp32"
    again.save_pretrained(tmp_path / "twice")
    for name in ("transformer.safetensors", "tokenizer.safetensors", "text_encoder.safetensors"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()


def test_a_class_conditional_pipeline_is_saved_with_its_labels(
    parts: dict[str, Any], build_transformer: Callable[..., STARTransformer], tmp_path: Path
) -> None:
    pipeline = class_conditional(parts, build_transformer)
    before = pipeline.draw(["3", "0"], [0, 1])
    pipeline.save_pretrained(tmp_path / "saved")
    again = STARPipeline.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.draw(["3", "0"], [0, 1]), before)
    with pytest.raises(ValueError, match=r"class 5 is not in 0 \.\.\. 4"):
        again.draw(["5"], [0])


def test_a_training_checkpoint_and_the_folder_made_of_it_are_one_model(checkpoint: Path, tmp_path: Path) -> None:
    run = STARPipeline.from_checkpoint(checkpoint)
    run.save_pretrained(tmp_path / "saved")
    for opened in (STARPipeline.from_pretrained(tmp_path / "saved"), STARPipeline.from_checkpoint(tmp_path / "saved")):
        assert opened.identity == run.identity
        assert torch.equal(opened.draw(PROMPTS, [0, 1]), run.draw(PROMPTS, [0, 1]))
    record = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "caption_dropout" not in json.dumps(record)


def test_what_is_not_opened_is_not_claimed_by_the_copy(pipeline: STARPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    held = json.loads((tmp_path / "saved" / "config.json").read_text())
    (tmp_path / "saved" / "config.json").write_text(json.dumps(held | {"refiner": {"_target_": "x"}}))
    STARPipeline.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "config.json").read_text()) == held


def test_another_preset_can_be_handed_over(pipeline: STARPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    greedy = STARPipeline.from_pretrained(tmp_path / "saved", sampling={"sampler": Greedy()})
    assert isinstance(greedy.decoder.sampler, Greedy)
    assert greedy.decoder.guidance is None


@pytest.mark.parametrize(
    ("precision", "held"),
    [(None, torch.float16), ("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_sixteen_bits_stay_unless_fp32_is_asked_for(
    pipeline: STARPipeline, tmp_path: Path, precision: str | None, held: torch.dtype
) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    write_pretrained(tmp_path / "half", read_pretrained(tmp_path / "saved"), dtype=torch.float16)
    opened = STARPipeline.from_pretrained(tmp_path / "half", precision=precision)
    assert {value.dtype for value in opened.transformer.parameters()} == {held}
    assert {value.dtype for value in opened.tokenizer.parameters()} == {torch.float32}
    assert opened.precision == (precision or "fp16")
    images = opened.draw(PROMPTS, [0, 1])
    assert images.dtype == torch.float32
    assert images.isfinite().all()


def test_fp32_weights_stay_fp32_under_autocast(pipeline: STARPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    opened = STARPipeline.from_pretrained(tmp_path / "saved", precision="bf16")
    assert {value.dtype for value in opened.transformer.parameters()} == {torch.float32}


def test_a_tokenizer_may_come_from_elsewhere_but_it_has_to_be_the_right_one(
    pipeline: STARPipeline, tokenizer: MultiScaleTokenizer, tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path / "whole")
    whole = read_pretrained(tmp_path / "whole")
    module = {name: part for name, part in whole["config"]["module"].items() if name != "tokenizer"}
    state = {name: value for name, value in whole["state_dict"].items() if not name.startswith("tokenizer.")}
    write_pretrained(tmp_path / "without", {"state_dict": state, "config": {**whole["config"], "module": module}})
    with pytest.raises(ValueError, match=r"has no tokenizer, which pictures need .*kind=tokenizer"):
        STARPipeline.from_pretrained(tmp_path / "without")
    again = STARPipeline.from_pretrained(tmp_path / "without", tokenizer=tmp_path / "whole")
    assert torch.equal(again.draw(PROMPTS, [0, 1]), pipeline.draw(PROMPTS, [0, 1]))
    with pytest.raises(ValueError, match="has no tokenizer"):
        STARPipeline.from_pretrained(tmp_path / "whole", tokenizer=tmp_path / "without")
    torch.nn.init.normal_(tokenizer.quantizer.codebook.weight)
    STARPipeline(**{**vars_of(pipeline), "tokenizer": tokenizer}).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="the two don't belong together"):
        STARPipeline.from_pretrained(tmp_path / "whole", tokenizer=tmp_path / "other")


def vars_of(pipeline: STARPipeline) -> dict[str, Any]:
    names = ("text_encoder", "transformer", "tokenizer", "schedule")
    return {name: getattr(pipeline, name) for name in names} | {"decoder": {"sampler": Greedy()}}


def test_what_cannot_be_opened_is_said(pipeline: STARPipeline, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder of converted weights"):
        STARPipeline.from_pretrained(tmp_path)
    pipeline.save_pretrained(tmp_path / "saved")
    with pytest.raises(FileExistsError, match="already has"):
        pipeline.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="precision is one of fp32, bf16, fp16, got 'int8'"):
        STARPipeline.from_pretrained(tmp_path / "saved", precision="int8")
    file = tmp_path / "saved" / "config.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"text_encoder": {"_target_": "os.system", "command": "touch pwned"}}))
    with pytest.raises(ValueError, match=r"'os\.system', which is not one of this package's classes"):
        STARPipeline.from_pretrained(tmp_path / "saved")


@pytest.fixture
def refined(parts: dict[str, Any], schedule: ScaleSchedule) -> STARPipeline:
    """The same parts, and a refiner that a preset of causal-driven sampling asks."""
    refiner = Refiner(
        width=32,
        num_heads=4,
        codebook_size=32,
        code_width=8,
        pooled_width=8,
        num_levels=len(schedule),
        position=Rotary2D(),
    )
    refiner.adopt(parts["transformer"].head, parts["tokenizer"].quantizer.codebook.weight)
    sampler = CausalDriven(steps=[2, 4], first_scale=2, top_k=16)
    return STARPipeline(**parts | {"refiner": refiner, "decoder": parts["decoder"] | {"sampler": sampler}})


def without_refiner(parts: dict[str, Any], refined: STARPipeline) -> dict[str, Any]:
    return {"sampler": refined.decoder.sampler, "guidance": parts["decoder"]["guidance"]}


def test_a_refiner_is_saved_and_opened_with_the_rest(refined: STARPipeline, tmp_path: Path) -> None:
    before = refined.draw(PROMPTS, [0, 1])
    refined.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "refiner.safetensors").is_file()
    for open_it in (STARPipeline.from_pretrained, STARPipeline.from_checkpoint):
        again = open_it(tmp_path / "saved")
        assert torch.equal(again.draw(PROMPTS, [0, 1]), before)
        assert not again.refiner.training  # type: ignore[union-attr]
    plain = STARPipeline.from_pretrained(tmp_path / "saved", sampling={"sampler": Greedy()})
    assert plain.refiner is not None
    plain.set_preset({"sampler": refined.decoder.sampler, "guidance": refined.decoder.guidance})
    assert torch.equal(plain.draw(PROMPTS, [0, 1]), before)


def test_a_picture_names_the_refiner_it_depends_on(refined: STARPipeline) -> None:
    (drawn,) = refined(PROMPTS[0], seeds=0).images
    assert json.loads(drawn.info["settings"])["refiner"] == refined.refiner_identity
    refined.set_preset({"sampler": Greedy()})
    (drawn,) = refined(PROMPTS[0], seeds=0).images
    assert "refiner" not in json.loads(drawn.info["settings"])


def test_a_refiner_lies_beside_its_generator_or_is_named(
    parts: dict[str, Any], checkpoint: Path, refined: STARPipeline, tmp_path: Path
) -> None:
    preset = without_refiner(parts, refined)
    with pytest.raises(ValueError, match="needs a refiner: train one"):
        STARPipeline.from_checkpoint(checkpoint, sampling=preset)
    run = torch.load(checkpoint)
    state = run["state_dict"] | {f"refiner.{name}": value for name, value in refined.refiner.state_dict().items()}  # type: ignore[union-attr]
    module = run["config"]["module"] | {"refiner": describe(refined.refiner)}
    sampler = {"state_dict": state, "config": {**run["config"], "task": "sampler", "module": module}}
    expected = refined.draw(PROMPTS, [0, 1])
    elsewhere = tmp_path / "elsewhere.ckpt"
    torch.save(export_refiner(sampler), elsewhere)
    named = STARPipeline.from_checkpoint(checkpoint, refiner=elsewhere, sampling=preset)
    assert torch.equal(named.draw(PROMPTS, [0, 1]), expected)
    elsewhere.rename(tmp_path / "refiner.ckpt")
    beside = STARPipeline.from_checkpoint(checkpoint, sampling=preset)
    assert torch.equal(beside.draw(PROMPTS, [0, 1]), expected)
    assert STARPipeline.from_checkpoint(checkpoint).refiner is None  # its own preset needs none
    torch.save(sampler, tmp_path / "sampler.ckpt")
    complete = STARPipeline.from_checkpoint(tmp_path / "sampler.ckpt", sampling=preset)
    assert torch.equal(complete.draw(PROMPTS, [0, 1]), expected)
    assert complete.identity == named.identity == STARPipeline.from_checkpoint(checkpoint).identity
    with pytest.raises(ValueError, match="a refiner alone: give its generator as ckpt="):
        STARPipeline.from_checkpoint(tmp_path / "refiner.ckpt", sampling=preset)


def test_a_refiner_of_another_generator_is_refused(
    parts: dict[str, Any], checkpoint: Path, refined: STARPipeline, tmp_path: Path
) -> None:
    config = {"task": "sampler", "generator_hash": "0123456789abcdef"}
    config["module"] = {"refiner": describe(refined.refiner), "schedule": describe(parts["schedule"])}  # type: ignore[assignment]
    state = {f"refiner.{name}": value for name, value in refined.refiner.state_dict().items()}  # type: ignore[union-attr]
    torch.save({"state_dict": state, "config": config}, tmp_path / "refiner.ckpt")
    identity = STARPipeline.from_checkpoint(checkpoint).identity
    with pytest.raises(ValueError, match=f"on the generator 0123456789abcdef, but .* is {identity}"):
        STARPipeline.from_checkpoint(checkpoint, sampling=without_refiner(parts, refined))


def test_a_refiner_of_other_sizes_is_refused_before_anything_is_drawn(
    parts: dict[str, Any], checkpoint: Path, refined: STARPipeline, schedule: ScaleSchedule, tmp_path: Path
) -> None:
    """A released one doesn't say whose it is."""
    sizes = {"num_heads": 4, "codebook_size": 32, "code_width": 8, "pooled_width": 8, "num_levels": 4}
    other = Refiner(width=64, position=Rotary2D(), **sizes)  # type: ignore[arg-type]
    module = {"refiner": describe(other), "schedule": describe(schedule)}
    state = {f"refiner.{name}": value for name, value in other.state_dict().items()}
    torch.save({"state_dict": state, "config": {"task": "sampler", "module": module}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="the refiner has width 64 and 32 codes, the generator 32 and 32"):
        STARPipeline.from_checkpoint(
            checkpoint, refiner=tmp_path / "other.ckpt", sampling=without_refiner(parts, refined)
        )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_refiner_draws_in_half_precision(refined: STARPipeline, tmp_path: Path, precision: str) -> None:
    refined.save_pretrained(tmp_path / "saved")
    write_pretrained(tmp_path / "half", read_pretrained(tmp_path / "saved"), dtype=torch.float16)
    opened = STARPipeline.from_pretrained(tmp_path / "half", precision=precision)
    assert {value.dtype for value in opened.refiner.parameters()} == {PRECISIONS[precision]}  # type: ignore[union-attr]
    assert opened.draw(PROMPTS, [0, 1]).isfinite().all()


def test_a_text_encoder_of_another_width_is_refused_before_it_is_multiplied(parts: dict[str, Any]) -> None:
    other = WordTransformer(width=12, depth=1, num_heads=2, vocabulary_size=50)
    with pytest.raises(ValueError, match=r"takes texts of width 8 \(pooled\) and 8 .* encoder gives 12 and 12"):
        STARPipeline(**parts | {"text_encoder": other}).draw(PROMPTS, [0, 1])
