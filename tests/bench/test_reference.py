"""The reference's steps give our numbers: what is compared is the same work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from star.bench.__main__ import main
from star.bench.reference import ReferenceSample, ReferenceTrain, run_blocks, turns
from star.bench.settings import Settings
from tests.bench.test_bench import TOY, measured

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_CONF", str(CONF))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@torch.no_grad()
def test_its_scales_are_ours() -> None:
    work = ReferenceSample(Settings("sample", batch=2, overrides=tuple(TOY)))
    model, schedule, quantizer = work.pipeline.transformer, work.pipeline.schedule, work.pipeline.tokenizer.quantizer
    texts = work.pipeline.text_encoder(["a", "b"])
    codes = [torch.randint(40, (2, length)) for length in schedule.lengths]
    expected = model(quantizer.teacher_forcing(codes, schedule), texts, schedule)
    past: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in model.blocks]
    f_hat, x_in, found = quantizer.start(2, schedule), None, []
    for k in range(len(schedule)):
        part = schedule.only(k)
        x = model._tokens(x_in, texts, part)
        hidden = run_blocks(model, x, texts, rotation=turns(model, part, torch.device("cpu")), past=past)
        found.append(model.head(hidden))
        f_hat = quantizer.accumulate(f_hat, codes[k], k, schedule)
        if k + 1 < len(schedule):
            x_in = quantizer.next_input(f_hat, k + 1, schedule)
    torch.testing.assert_close(torch.cat(found, 1), expected, atol=1e-4, rtol=1e-4)


def test_its_training_step_is_ours() -> None:
    work = ReferenceTrain(Settings("train", batch=2, overrides=tuple(TOY)))
    weight = work.model.blocks[0].attention.qkv.weight
    found = []

    def backward(loss: torch.Tensor) -> None:
        weight.grad = None
        loss.backward()
        assert weight.grad is not None
        found.append((loss.detach(), weight.grad.clone()))

    work._backward = backward  # type: ignore[method-assign]
    work.run()
    backward(work.objective(work.model, work.tokenizer, work.codes, work.condition.trim(), work.schedule).total)
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-3)


def test_it_reads_the_text_s_padding() -> None:
    work = ReferenceTrain(Settings("train", overrides=tuple(TOY)))
    assert work.condition.context is not None
    assert work.condition.context.shape[1] == 77


@pytest.mark.parametrize("kind", ["sample", "train"])
def test_the_command_takes_turns_with_it(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(capsys, kind, "dtype=bf16", "versus=implementation=reference")
    assert found["versus"]["settings"]["implementation"] == "reference"
    assert {"total", "blocks"} <= set(found["versus"]["cpu_seconds"])
    assert found["ratio"]["cpu_seconds"]["total"] > 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["decode", "implementation=reference"], "not for decode"),
        (["sample", "implementation=theirs"], "theirs"),
        (["sample", "implementation=reference", "sampling=greedy"], "top-k"),
        (["train", "implementation=reference", "model.qk_norm=false"], "normalised"),
    ],
)
def test_what_it_has_no_steps_for_is_refused(words: list[str], says: str, caplog: pytest.LogCaptureFixture) -> None:
    toy = [word for word in TOY if not word.startswith("sampling")] if "sampling=greedy" in words else TOY
    with pytest.raises(SystemExit):
        main([*words, *toy])
    assert says in caplog.text
