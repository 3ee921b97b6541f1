"""The command, at toy size: what it writes, and that the parts are the whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from star.bench import measure, report
from star.bench.__main__ import HELP, main, prepare
from star.bench.measure import ratio
from star.bench.peak import Peak
from star.bench.settings import Settings, parse
from star.bench.work import BLOCKS, Decode, Sample, Train, Work
from star.models.flops import transformer_flops

CONF = Path(__file__).parents[2] / "conf"
TOY = [
    "model.depth=2",
    "model.width=32",
    "model.num_heads=2",
    "stage=64",
    "tokenizer=nano",
    "tokenizer.encoder.channels=16",
    "tokenizer.quantizer.codebook_size=40",
    "text_encoder=word_transformer",
    "text_encoder.width=16",
    "sampling=demo",
]
OFF = ("sampling.guidance.off_after=1",)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_CONF", str(CONF))
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def measured(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    main([*words, "threads=1", "repeats=2", "format=json", *TOY])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_sampling_is_timed_part_by_part(capsys: pytest.CaptureFixture[str], dtype: str) -> None:
    found = measured(capsys, "sample", "batch=2", f"dtype={dtype}")
    for clock in ("cpu_seconds", "wall_seconds"):
        parts = found[clock]
        assert set(parts) == {
            "total", "text", "blocks", "self_attention", "cross_attention", "feed_forward", "head", "token_sampling",
            "quantiser", "decoder", "other",
        }  # fmt: skip
        assert parts["blocks"] >= sum(parts[name] for name in BLOCKS[1:])
    for low, high in found["spread"]["wall_seconds"].values():
        assert 0 <= low <= high
    wall = found["wall_seconds"]
    inside = sum(seconds for part, seconds in wall.items() if part not in ("total", "text", *BLOCKS[1:]))
    assert inside == pytest.approx(wall["total"], rel=0.5)  # medians of each, not of one run
    assert found["peak_memory_gib"] >= found["memory_before_gib"] > 0
    scales = found["matmul"]["scales"]
    assert [tuple(scale["size"]) for scale in scales] == [(1, 1), (2, 2), (4, 4), (8, 8)]
    assert all(scale["share"] == pytest.approx(scale["gflops"] / scale["matmul_gflops"]) for scale in scales)
    assert found["gflop"] > 0
    assert found["machine"]["threads"] == 1


def test_a_slow_type_is_not_measured_on_large_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1 GFLOP/s the smaller product takes 0.27 s, the larger one 17 s, and often far more."""
    blockless: Any = SimpleNamespace(blocks=[])
    peak = Peak(blockless, "fp32", torch.device("cpu"))
    asked = []

    def take(rate: float, work: Any) -> float:
        asked.append(len(work()))
        return 2 * asked[-1] ** 3 / rate

    for rate, sides in ((1e11, [512, 2048]), (1e9, [512])):
        asked.clear()
        monkeypatch.setattr(Peak, "_seconds", lambda self, work, rate=rate: take(rate, work))
        assert peak.large() == pytest.approx(rate / 1e9)
        assert asked == sides


def test_training_is_timed_part_by_part(capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(capsys, "train", "batch=2")
    parts = found["cpu_seconds"]
    assert {"blocks", "self_attention", "cross_attention", "feed_forward", "head", "quantiser", "backward"} < set(parts)
    assert parts["backward"] > 0


@pytest.mark.parametrize("kind", ["decode", "text"])
def test_decoding_and_reading_are_timed_whole(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    found = measured(capsys, kind)
    assert found["cpu_seconds"]["total"] > 0
    assert found["kind"] == kind


def test_two_settings_in_turns_and_an_earlier_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "runs" / "first.json"
    first = measured(capsys, "decode", f"out={out}", "versus=batch=3 speed=plain")
    assert json.loads(out.read_text()) == first
    assert first["versus"]["settings"]["batch"] == 3
    total = first["cpu_seconds"]["total"]
    assert first["ratio"]["cpu_seconds"]["total"] == pytest.approx(total / first["versus"]["cpu_seconds"]["total"])
    main(["decode", "threads=1", "repeats=1", f"against={out}", *TOY])
    text = capsys.readouterr().out
    assert f"this / {out}" in text
    assert "peak memory" in text


def test_the_table_shows_both_settings(capsys: pytest.CaptureFixture[str]) -> None:
    main(["sample", "threads=1", "repeats=1", "warmup=0", "versus=speed.weights=cast", *TOY])
    text = capsys.readouterr().out
    for words in ("first / versus", "    self_attention", "8x8", "GFLOP/s", "speed.weights=cast"):
        assert words in text


def test_text_features_do_the_baselines_work() -> None:
    work = Sample(Settings("sample", batch=2, overrides=tuple(TOY)))
    condition, empty = work.pipeline.text_encoder(["a", "b"]), work.pipeline.text_encoder([""])
    assert condition.context is not None
    assert condition.context.shape == (2, 77, 16)
    assert condition.context_mask is not None
    assert empty.context_mask is not None
    assert condition.context_mask.sum(1).tolist() == [20, 20]
    assert empty.context_mask.sum(1).tolist() == [2]


def test_what_was_watched_is_as_before() -> None:
    from star.bench.stopwatch import Stopwatch

    work = Decode(Settings("decode", overrides=tuple(TOY)))
    before = (work.pipeline.decoder.sampler, work.pipeline.decoder.paint)
    with work.watched(Stopwatch(work.device)):
        assert work.pipeline.decoder.sampler is not before[0]
    assert (work.pipeline.decoder.sampler, work.pipeline.decoder.paint) == before
    assert "forward" not in vars(work.pipeline.transformer.head)


def test_reading_the_text_is_no_part_of_the_total() -> None:
    own = {"text": 1.0, "blocks/0": 2.0, "blocks/1": 0.5, "self_attention": 3.0, "head": 0.5}
    found = measure._parts(own, 10.0)
    assert found == {"total": 9.0, "text": 1.0, "blocks": 5.5, "self_attention": 3.0, "head": 0.5, "other": 3.0}


@pytest.mark.parametrize("warmup", [0, 1])
def test_settings_take_turns_and_memory_is_a_repetitions_own(monkeypatch: pytest.MonkeyPatch, warmup: int) -> None:
    """Giving pages back costs the work that follows time: what is timed doesn't follow it, if anything comes before."""
    turns: list[str] = []

    class Noted(Work):
        def run(self) -> None:
            turns.append(self.settings.dtype)

    monkeypatch.setitem(measure.WORK, "train", Noted)
    levels = {"reset": iter([1.0, 1.4]), "peak": iter([1.5, 1.6])}
    for name, values in levels.items():
        monkeypatch.setattr(
            measure.PeakMemory, name, lambda self, name=name, values=values: turns.append(name) or next(values)
        )
    found = measure.measure(parse(["train", "repeats=2", f"warmup={warmup}", "versus=dtype=bf16", *TOY]))
    weighed = [["reset", kind, "peak"] for kind in ("fp32", "bf16")]
    if warmup:
        assert turns == ["fp32", *weighed[0], "bf16", *weighed[1], *["fp32", "bf16"] * 2]
    else:
        assert turns == [*weighed[0], *weighed[1], "fp32", "bf16"]
    assert (found["memory_before_gib"], found["peak_memory_gib"]) == (1.0, 1.5)
    assert found["peak_above_before_gib"] == pytest.approx(0.5)
    assert found["versus"]["peak_above_before_gib"] == pytest.approx(0.2)


def test_only_what_is_computed_is_counted() -> None:
    def gflop(kind: str, *words: str) -> int:
        return measure.WORK[kind](Settings(kind, overrides=(*TOY, *words))).flops()

    full, half, last = (gflop("sample", *words) for words in ((), ("sampling.guidance=null",), OFF))
    decoding = gflop("decode")
    assert full - decoding == 2 * (half - decoding)
    part = Sample(Settings("sample", overrides=tuple(TOY)))
    first = transformer_flops(part.pipeline.transformer, part.pipeline.schedule.only(0, 1), text_tokens=20)
    assert last == half + first
    assert gflop("sample", *OFF, "speed.skip_guidance=false") == full
    assert gflop("train", "train_tokens=random_tail", "train_tokens.share=0.8") < gflop("train")


def test_training_runs_its_blocks_as_train_py_does() -> None:
    for words, wrapped in (((), False), (("activation_checkpointing=full",), True), (("compile=blocks",), True)):
        work = Train(Settings("train", overrides=(*TOY, *words)))
        assert all(("forward" in vars(block)) == wrapped for block in work.model.blocks)


def test_words_become_settings() -> None:
    request = parse(["sample", "batch=2", "stage=512", "versus=dtype=bf16 speed=plain", "repeats=3"])
    assert request.first == Settings("sample", batch=2, overrides=("stage=512",))
    assert request.second == Settings("sample", batch=2, dtype="bf16", overrides=("stage=512", "speed=plain"))
    assert request.repeats == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say first what to measure"),
        (["batch=2"], "say first what to measure"),
        (["draw"], "got 'draw'"),
        (["sample", "dtype=fp8"], "got 'fp8'"),
        (["sample", "fast"], "'fast' isn't understood"),
        (["sample", "batch=0"], "batch=0 can't be read"),
        (["sample", "format=xml"], "got 'xml'"),
        (["sample", "warmup=-1"], "got -1"),
        (["train", "speed.weights=cast"], "speed.weights=cast says how pictures are drawn"),
        (["text", "versus=speed=plain"], "speed=plain says how pictures are drawn, and text draws none"),
    ],
)
def test_nonsense_is_refused_with_the_value(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(words)


def test_candidates_are_no_parts_of_a_picture() -> None:
    with pytest.raises(ValueError, match=r"leave sampling\.best_of\.count at 1"):
        Sample(Settings("sample", overrides=(*TOY, "sampling.best_of.count=2")))


def test_an_earlier_run_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no earlier run"):
        report.read(tmp_path / "none.json")
    (tmp_path / "odd.json").write_text('{"cpu_seconds": 3}')
    with pytest.raises(ValueError, match="odd.json is no run"):
        report.read(tmp_path / "odd.json")


def test_another_programs_figures_are_compared_as_far_as_they_go() -> None:
    ours = {"cpu_seconds": {"total": 2.0, "head": 1.0}, "wall_seconds": {"total": 1.0}, "peak_memory_gib": 3.0}
    theirs = {"cpu_seconds": {"total": 4.0}, "wall_seconds": {"total": 4.0}, "peak_memory_gib": 6.0}
    found = ratio(ours, theirs)
    assert found == {"cpu_seconds": {"total": 0.5}, "wall_seconds": {"total": 0.25}, "peak_memory_gib": 0.5}


def test_threads_that_wait_sleep() -> None:
    prepare(["sample", "threads=2"])
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    assert capsys.readouterr().out == HELP
    for option in (
        "batch=",
        "dtype=",
        "repeats=",
        "warmup=",
        "threads=",
        "device=",
        "format=",
        "out=",
        "against=",
        "versus=",
    ):
        assert option in HELP
