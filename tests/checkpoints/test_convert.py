from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from star.checkpoints import io
from star.checkpoints.convert import main
from star.checkpoints.official import dump_transformer, load_refiner, load_transformer
from star.checkpoints.request import HELP, Request, parse, parse_schedule
from star.schedule import ScaleSchedule

READS = ["text_encoder=word_transformer", "text_encoder.width=12"]


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def transformer(path: Path) -> dict[str, torch.Tensor]:
    return io.part(io.weights(io.read(path)), "transformer.")


def refused(caplog: pytest.LogCaptureFixture, *arguments: str) -> str:
    """What a command that can't be done says, without a traceback."""
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 1
    return caplog.records[-1].getMessage()


def test_star_with_its_tokenizer_and_back(toys: Any, same: Callable[..., bool]) -> None:
    source, out = toys.write_star(), toys.folder / "ours"
    main([f"source={source}", "kind=star", f"out={out}", f"tokenizer={toys.write_tokenizer()}", *READS])
    written = record(out)
    assert (written["kind"], written["transformer"]["first_sample_text"]) == ("star", True)
    assert written["schedule"]["sizes"] == [1, 2, 3]
    assert written["position"]["coordinates"] == "normalized"
    assert written["text_encoder_id"].startswith("word_transformer/width12")
    assert len(written["tokenizer_hash"]) == 16
    assert "first_sample_text" in written["notes"]
    main([f"source={out}", "to=official", f"out={toys.folder / 'back.pth'}"])
    held = torch.load(toys.folder / "back.pth", weights_only=True)["trainer"]["var_wo_ddp"]
    assert same(held, torch.load(source, weights_only=True)["trainer"]["var_wo_ddp"])
    assert same(transformer(out), load_transformer(source, schedule=toys.schedule).state_dict())


def test_the_tokenizer_inside_of_a_training_checkpoint_comes_along(toys: Any) -> None:
    main([f"source={toys.write_star(tokenizer=True)}", "kind=star", f"out={toys.folder / 'ours'}", *READS])
    assert record(toys.folder / "ours")["tokenizer"] is not None


def test_class_conditional_var_needs_no_text_encoder(toys: Any) -> None:
    out = toys.folder / "ours"
    main([f"source={toys.write_var()}", "kind=var", f"out={out}"])
    written = record(out)
    assert (written["kind"], written["transformer"]["first_sample_text"]) == ("var", False)
    assert written["text_encoder"]["num_classes"] == 10
    assert written["sampling"]["sampler"]["top_k"] == 900
    assert written["tokenizer"] is None


def test_parts_are_added_with_the_folders_schedule(toys: Any, same: Callable[..., bool]) -> None:
    sampler, out = toys.write_sampler(), toys.folder / "ours"
    main([f"source={sampler}", "kind=star", f"out={out}", *READS])
    main([f"source={sampler}", "kind=refiner", f"out={out}"])
    main([f"source={toys.write_tokenizer()}", "kind=tokenizer", f"out={out}"])
    assert record(out)["files"] == [f"{part}.safetensors" for part in ("transformer", "refiner", "tokenizer")]
    found = io.part(io.weights(io.read(out)), "refiner.")
    assert same(found, load_refiner(sampler, schedule=toys.schedule).state_dict())


def test_options_reach_the_model(toys: Any) -> None:
    flat = toys.write("flat.pth", dump_transformer(toys.star(num_levels=10)))
    options = ["schedule=1 2,3", "first_sample_text=false", "logit_norm=false", "position.theta=100", "dtype=fp16"]
    main([f"source={flat}", "kind=star", f"out={toys.folder / 'ours'}", "sampling=greedy", *options, *READS])
    written = record(toys.folder / "ours")
    assert written["schedule"]["sizes"] == [1, 2, 3]
    assert (written["transformer"]["first_sample_text"], written["transformer"]["logit_norm"]) == (False, False)
    assert written["position"]["theta"] == 100
    assert "Greedy" in written["sampling"]["sampler"]["_target_"]
    assert not written["notes"]
    assert {value.dtype for value in transformer(toys.folder / "ours").values()} == {torch.float16}


def test_var_becomes_the_beginning_of_star(toys: Any, caplog: pytest.LogCaptureFixture) -> None:
    source = toys.write_var()
    with caplog.at_level(logging.INFO):
        main([f"source={source}", "kind=var", "to=star", f"out={toys.folder / 'star'}", *READS])
    assert "from VAR to STAR:" in caplog.text
    assert "dropped        text_encoder.embedding.weight" in caplog.text
    assert record(toys.folder / "star")["kind"] == "star"
    main([f"source={source}", "kind=var", "to=star", f"out={toys.folder / 'star.ckpt'}", *READS, "position=absolute"])
    opened = io.read(toys.folder / "star.ckpt")
    assert opened["config"]["module"]["transformer"]["position"]["width"] == 32
    var = load_transformer(source, schedule=toys.schedule).state_dict()
    assert torch.equal(opened["state_dict"]["transformer.position.table"], var["position.table"])


def test_a_run_of_ones_own_becomes_a_folder(toys: Any, same: Callable[..., bool]) -> None:
    main([f"source={toys.write_var()}", "kind=var", "to=star", f"out={toys.folder / 'run.ckpt'}", *READS])
    main([f"source={toys.folder / 'run.ckpt'}", f"out={toys.folder / 'ours'}"])
    assert same(transformer(toys.folder / "ours"), transformer(toys.folder / "run.ckpt"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kind=star", "out=x"], "set source="),
        (["source=nowhere.pth", "kind=star", "out=x"], "source=nowhere.pth does not exist"),
        (["source=STAR", "out=x"], "set kind= to what"),
        (["source=STAR", "kind=vae", "out=x"], "kind is one of star, var, tokenizer, refiner, got 'vae'"),
        (["source=STAR", "kind=star", "out=x", "shedule=256"], "there is no shedule=, but schedule="),
        (["source=STAR", "kind=star", "out"], "arguments are KEY=VALUE, got 'out'"),
        (["source=STAR", "kind=star", "out=x", "schedule=one two"], "schedule is 256, 512, 1024, or sides"),
        (["source=STAR", "kind=star", "out=x", "schedule=300"], "there is no schedule=300, but 1024, 128, 256, 512"),
        (["source=STAR", "kind=star", "out=x", "schedule=1 2 4"], "isn't the beginning of the one"),
        (["source=STAR", "kind=star", "out=x", "position=absolute"], "has no learned positions"),
        (["source=STAR", "kind=star", "out=x", "text_encoder=clap"], "there is no text_encoder=clap, but class_label"),
        (["source=STAR", "kind=star", "out=x", "text_encoder.wide=3"], "wide"),
        (["source=STAR", "kind=star", "out=x", "to=star"], "set kind=var, got kind=star"),
        (["source=STAR", "kind=star", "out=x", "first_sample_text=yes"], "first_sample_text is one of true, false"),
        (["source=STAR", "kind=star", "out=x", "num_heads=two"], "num_heads is a number"),
        (["source=STAR", "kind=var", "out=x", "text_encoder=t5"], "leave text_encoder out"),
        (["source=STAR", "kind=var", "out=x"], "is STAR: use kind=star"),
        (["source=STAR", "to=official", "out=x.pth"], "no state_dict"),
    ],
    ids=lambda value: value.replace(" ", "_")[:30] if isinstance(value, str) else None,
)
def test_what_is_wrong_is_said_and_nothing_is_written(
    toys: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(toys.folder)
    toys.write_star("STAR")
    assert message in refused(caplog, *arguments)
    assert not (toys.folder / "x").exists()


def test_a_checkpoint_of_ours_needs_no_kind(toys: Any, caplog: pytest.LogCaptureFixture) -> None:
    main([f"source={toys.write_var()}", "kind=var", f"out={toys.folder / 'ours'}"])
    said = refused(caplog, f"source={toys.folder / 'ours'}", "kind=var", f"out={toys.folder / 'x'}")
    assert "leave kind= out, or set to=official" in said


def test_schedules_are_read() -> None:
    assert parse_schedule("1 2, 3 4x6") == ScaleSchedule(((1, 1), (2, 2), (3, 3), (4, 6)))


def test_help_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    assert capsys.readouterr().out == HELP
    for name in Request.__dataclass_fields__:
        assert name == "overrides" or f"  {name}=" in HELP
    assert parse(["source=a", "kind=star", "out=b", "text_encoder.width=3"]).overrides == ("text_encoder.width=3",)


PEAK = """
import sys
from star.checkpoints import io
from star.checkpoints.build import build
from star.checkpoints.convert import main
import star.models.conditioning.word_transformer  # the encoder that the command builds

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

before = peak()
main([f"source={sys.argv[1]}", "kind=star", f"out={sys.argv[2]}", "text_encoder=word_transformer"])
converted = peak() - before
opened = io.read(sys.argv[2])
state = io.part(opened["state_dict"], "transformer.")
model = build(opened["config"]["module"]["transformer"], state, what="it")
sum(parameter.detach().numpy().max() for parameter in model.parameters())  # every page is read
sys.stdout.write(f"{converted * 1024} {(peak() - before) * 1024}")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_converting_and_opening_take_little_more_memory_than_the_file(toys: Any) -> None:
    tensors = {name: tensor.half() for name, tensor in dump_transformer(toys.star()).items()}
    tensors["head_logits.weight"] = torch.zeros(3_000_000, 32).half()
    tensors["head_logits.bias"] = torch.zeros(3_000_000).half()
    file = toys.write("big.pth", {"trainer": {"var_wo_ddp": tensors, "config": {"patch_nums": [1, 2, 3]}}})
    command = [sys.executable, "-c", PEAK, str(file), str(toys.folder / "ours")]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert max(map(int, run.stdout.split())) < 1.5 * file.stat().st_size
