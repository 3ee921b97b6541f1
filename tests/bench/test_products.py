"""The floor multiplies what the work multiplies: no less, no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from star.bench import products
from star.bench.__main__ import main
from star.bench.products import ProductsSample, ProductsTrain
from star.bench.settings import Settings
from star.bench.work import Train
from tests.bench.test_bench import OFF, TOY, measured

Count = Callable[[Callable[[], object]], int]
CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_CONF", str(CONF))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # packed weights are multiplied by operations that the counter doesn't know
    monkeypatch.setattr(products, "hold", lambda *arguments: None)


@pytest.mark.parametrize("more", [(), OFF, ("sampling.guidance=null",), ("mask=markov",)])
def test_drawing_counts_as_computed(more: tuple[str, ...], counted: Count) -> None:
    work = ProductsSample(Settings("sample", batch=2, overrides=(*TOY, "speed.weights=as_is", *more)))
    assert counted(work.run) == work.flops()


@pytest.mark.parametrize("more", [(), ("mask=markov",), ("train_tokens=random_tail", "train_tokens.share=0.9")])
def test_training_counts_as_done(more: tuple[str, ...], counted: Count) -> None:
    settings = Settings("train", batch=2, overrides=(*TOY, *more))
    floor, work = ProductsTrain(settings), Train(settings)
    smoothing = counted(lambda: work.tokenizer.quantizer.teacher_forcing(work.codes, work.schedule))
    assert counted(floor.run) == counted(work.run) - smoothing


@pytest.mark.parametrize(
    ("more", "message"),
    [(("compile=blocks",), "compile=false"), (("model.adaptive_norm=own", "text_encoder.width=32"), "adaptive_norm")],
)
def test_what_it_would_leave_out_is_refused(more: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProductsTrain(Settings("train", overrides=(*TOY, *more)))


@pytest.mark.parametrize(
    ("kind", "parts"),
    [("sample", {"linear", "attention", "ends", "decoder"}), ("train", {"linear", "attention", "ends"})],
)
def test_the_command_measures_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str, parts: set[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("STAR_CONF", str(CONF))
    found = measured(capsys, kind, "dtype=bf16", "versus=implementation=products")["versus"]
    assert found["settings"]["implementation"] == "products"
    assert parts < set(found["cpu_seconds"])
    assert "matmul" not in found


def test_the_table_says_which_is_which(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "threads=1", "repeats=1", "warmup=0", "versus=implementation=products", *TOY])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train: batch 1")
    assert any(line.startswith("versus: products, batch 1") for line in lines)
