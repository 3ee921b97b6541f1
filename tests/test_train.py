"""Train, sample, evaluate through the real entry points, at toy size."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from star.checkpoints import io
from star.checkpoints.refiner import export_refiner
from star.data.shapes import ShapesSettings, write_shards

ROOT = Path(__file__).parents[1]
TINY = [
    "stage=64",
    "resolution=16",
    "schedule.sizes=[1,2]",
    "data=shapes",
    "data.num_workers=0",
    "data.shuffle_buffer=16",
    "tokenizer=nano",
    "tokenizer.encoder.channels=16",
    "tokenizer.quantizer.codebook_size=16",
    "model=nano",
    "model.depth=1",
    "model.width=32",
    "model.num_heads=2",
    "text_encoder=word_transformer",
    "text_encoder.width=32",
    "text_encoder.depth=1",
    "text_encoder.num_heads=2",
    "text_encoder.vocabulary_size=64",
    "trainer=cpu",
    "trainer.precision=32-true",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=1",
    "callbacks.checkpoint.every_n_train_steps=2",
    "callbacks.pictures.every_n_steps=2",
    "callbacks.pictures.num_images=2",
    "batch_size=4",
    "logger=csv",
]


def run(script: str, *arguments: str, code: int = 0) -> str:
    """Run a root script as a user would; returns all that it said."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "1"}
    done = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    return said


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, split, seed in (("train", "train", 0), ("validation", "heldout", 1)):
        settings = ShapesSettings(num_images=24, split=split, seed=seed, samples_per_shard=12)
        write_shards(folder / "shapes" / name, settings, workers=1, progress=False)
    return folder


@pytest.fixture(scope="module")
def tokenizer_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a tokenizer, with = and commas"
    steps = ["trainer.max_steps=4", "trainer.val_check_interval=2"]
    run("train.py", "task=tokenizer", *TINY, *steps, f"paths.data={data}", f"paths.run_dir={folder}")
    return folder


@pytest.fixture(scope="module")
def generator_run(data: Path, tokenizer_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "generator"
    train_generator(data, tokenizer_run, folder, 4)
    return folder


def train_generator(data: Path, tokenizer: Path, folder: Path, steps: int, *more: str, code: int = 0) -> str:
    """Overrides of `more` come last; flags of Hydra's come first."""
    flags = [argument for argument in more if argument.startswith("-")]
    more = tuple(argument for argument in more if argument not in flags)
    return run(
        "train.py",
        *flags,
        *TINY,
        f"trainer.max_steps={steps}",
        "trainer.val_check_interval=2",
        f"paths.data={data}",
        f"paths.tokenizer={tokenizer}",
        f"paths.run_dir={folder}",
        *more,
        code=code,
    )


@pytest.mark.slow
def test_a_run_directory_holds_what_it_should(tokenizer_run: Path, generator_run: Path) -> None:
    for folder in (tokenizer_run, generator_run):
        assert (folder / "checkpoints" / "last.ckpt").is_file()
        assert (folder / "metrics.csv").read_text().count("\n") > 2
        assert json.loads((folder / "config.json").read_text())["config"]["resolution"] == 16
        assert (folder / ".hydra" / "overrides.yaml").is_file()
        assert list((folder / "pictures").glob("*.png"))
    checkpoint = torch.load(generator_run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert any(name.startswith("transformer.") for name in checkpoint["state_dict"])
    assert any(name.startswith("tokenizer.") for name in checkpoint["state_dict"])
    tokenizer = io.read(tokenizer_run)
    held = io.weights(tokenizer)["tokenizer.quantizer.codebook.weight"]
    assert torch.equal(checkpoint["state_dict"]["tokenizer.quantizer.codebook.weight"], held)


@pytest.mark.slow
def test_sampling_alone_and_in_a_batch_gives_the_same_pictures(generator_run: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n" + "".join(f"a picture of {n} stars\n" for n in range(7)))
    together, alone = tmp_path / "together", tmp_path / "alone"
    run("sample.py", f"ckpt={generator_run}", f"prompts={prompts}", "batch=8", "seed=3", f"out={together}")
    run(
        "sample.py",
        f"ckpt={generator_run / 'checkpoints' / 'last.ckpt'}",
        "prompt=a red circle",
        "seed=3",
        f"out={alone}",
    )
    assert (alone / "00000.png").read_bytes() != b""
    first, second = (np.asarray(Image.open(folder / "00000.png")) for folder in (together, alone))
    assert np.array_equal(first, second)
    index = [json.loads(line) for line in (together / "index.jsonl").read_text().splitlines()]
    assert index[0] == {"file": "00000.png", "prompt": "a red circle", "seed": 3}
    assert len(index) == len(list(together.glob("*.png"))) == 8


@pytest.mark.slow
def test_free_text_and_genevals_layout(generator_run: Path, tmp_path: Path) -> None:
    prompt = 'a painter\'s (old) "hat", red = blue'
    run(
        "sample.py",
        f"ckpt={generator_run}",
        f"prompt={prompt}",
        "num_images=2",
        "layout=geneval",
        f"out={tmp_path / 'g'}",
        "sampling=greedy",
    )
    assert json.loads((tmp_path / "g" / "00000" / "metadata.jsonl").read_text())["prompt"] == prompt
    assert (tmp_path / "g" / "00000" / "samples" / "00001.png").is_file()
    assert Image.open(tmp_path / "g" / "00000" / "samples" / "00000.png").text["prompt"] == prompt  # type: ignore[attr-defined]
    said = run(
        "sample.py",
        f"ckpt={generator_run}",
        "prompt=other",
        f"out={tmp_path / 'g'}",
        "sampling.guidance.scale=1",
        code=1,
    )
    assert "choose another out=" in said


@pytest.mark.slow
def test_resuming_ends_where_an_uninterrupted_run_ends(data: Path, tokenizer_run: Path, tmp_path: Path) -> None:
    """From the checkpoint in the middle: the same weights, averages and optimiser, to the bit."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train_generator(data, tokenizer_run, straight, 4, "callbacks.checkpoint.save_top_k=-1")
    middle = straight / "checkpoints" / "step_00000002.ckpt"
    assert io.read(middle)["global_step"] == 2
    train_generator(data, tokenizer_run, resumed, 4, f"resume_from={middle}")
    one, other = io.read(straight), io.read(resumed)
    assert other["global_step"] == 4
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    for name, value in one["averaged"]["weights"].items():
        assert torch.equal(value, other["averaged"]["weights"][name]), name
    for slot, state in one["optimizer_states"][0]["state"].items():
        for name, value in state.items():
            assert torch.equal(
                torch.as_tensor(value), torch.as_tensor(other["optimizer_states"][0]["state"][slot][name])
            )


def hear_ctrl_c() -> None:
    """In the child: a job in the background is born deaf to ctrl-C, a user's shell isn't."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_ctrl_c_leaves_a_resumable_checkpoint(data: Path, tokenizer_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "interrupted"
    arguments = [
        *TINY,
        "trainer.max_steps=100000",
        "callbacks.checkpoint.every_n_train_steps=100000",
        "trainer.val_check_interval=1000",
    ]
    command = [
        sys.executable,
        "train.py",
        *arguments,
        f"paths.data={data}",
        f"paths.tokenizer={tokenizer_run}",
        f"paths.run_dir={folder}",
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=hear_ctrl_c
    )
    try:
        deadline = time.monotonic() + 240
        while not (folder / "pictures").is_dir() and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode != 0, said
    step = io.read(folder)["global_step"]
    assert 2 <= step < 100000
    train_generator(data, tokenizer_run, folder, step + 1, "resume_from=auto")
    assert io.read(folder)["global_step"] == step + 1


@pytest.mark.slow
def test_what_a_user_gets_wrong_is_said_in_one_message(
    data: Path, tokenizer_run: Path, generator_run: Path, tmp_path: Path
) -> None:
    out = f"paths.run_dir={tmp_path / 'x'}"
    said = run("train.py", "stage=512", "model=d30", out, code=1)
    assert "data.sources.recaptioned.urls" in said
    assert "stage 512 is meant to continue a run of stage 256" in said
    said = run("train.py", *TINY, f"paths.data={tmp_path}", out, code=1)
    assert "shapes/train/*.tar" in said
    said = run(
        "train.py",
        *TINY,
        "schedule.sizes=[1,2,3]",
        f"paths.data={data}",
        f"paths.tokenizer={tokenizer_run}",
        out,
        code=1,
    )
    assert "change the stage (resolution and schedule) or the tokenizer" in said
    said = run("train.py", *TINY, f"paths.data={data}", out, code=1)
    assert "set paths.tokenizer" in said
    said = run(
        "train.py",
        *TINY,
        "model.width=64",
        f"init_from={generator_run}",
        f"paths.data={data}",
        f"paths.tokenizer={tokenizer_run}",
        out,
        code=1,
    )
    assert "reshaped" in said
    assert "Traceback" not in said
    said = run("sample.py", f"ckpt={tokenizer_run}", "prompt=x", f"out={tmp_path / 'y'}", code=1)
    assert "pictures need one of task=generator" in said


@pytest.mark.slow
def test_a_stage_begins_with_the_one_before(data: Path, tokenizer_run: Path, tmp_path: Path) -> None:
    """With other token maps, and windows of them trained; going on with the old stage's training is refused."""
    before, later = tmp_path / "before", tmp_path / "later"
    train_generator(data, tokenizer_run, before, 1, "position=absolute")
    stage = ["resolution=32", "schedule.sizes=[1,2,4]", "position=absolute", "train_tokens=local_window"]
    said = train_generator(data, tokenizer_run, later, 2, *stage, f"init_from={before}", "resume_from=auto")
    assert "2 to 3 levels, by relative position" in said
    assert "'1 2' to '1 2 4', interpolated" in said
    assert "another tokenizer" not in said
    old, new = (io.read(run)["state_dict"] for run in (before, later))
    assert new["transformer.level.weight"].shape[0] == old["transformer.level.weight"].shape[0] + 1
    said = train_generator(data, tokenizer_run, later, 3, *stage, f"init_from={before}", "resume_from=auto")
    assert "grown" not in said
    assert io.read(later)["global_step"] == 3
    said = train_generator(data, tokenizer_run, tmp_path / "x", 2, *stage, f"resume_from={before}", code=1)
    assert "to begin a new training with its weights, of another stage, too, use init_from=" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_sweep_trains_every_combination_and_goes_on_where_it_was(
    data: Path, tokenizer_run: Path, tmp_path: Path
) -> None:
    train_generator(data, tokenizer_run, tmp_path / "sweep", 1, "-m", "position=normalized,absolute")
    for job, position in (("0", "Rotary2D"), ("1", "AbsolutePosition")):
        config = io.config(io.read(tmp_path / "sweep" / job), job)
        assert config["position"]["_target_"].endswith(position)
    (tmp_path / "sweep" / "1" / "checkpoints" / "last.ckpt").unlink()  # cut off before its first one
    sweep = ("-m", "position=normalized,absolute", "resume_from=auto")
    train_generator(data, tokenizer_run, tmp_path / "sweep", 2, *sweep)
    ended = [tmp_path / "sweep" / job / "checkpoints" / "last.ckpt" for job in ("0", "1")]
    assert [io.read(file)["global_step"] for file in ended] == [2, 2]
    before = [file.stat().st_mtime_ns for file in ended]
    train_generator(data, tokenizer_run, tmp_path / "sweep", 2, *sweep)
    assert [file.stat().st_mtime_ns for file in ended] == before


@pytest.mark.slow
def test_a_checkpoint_is_scored(generator_run: Path, tmp_path: Path) -> None:
    few = ["metric.items.shapes.num_images=1", "metric.items.shapes.seen=false", "metric.items.shapes.renders=false"]
    run("evaluate.py", "metric=shapes", f"ckpt={generator_run}", f"out={tmp_path / 'e'}", *few)
    card = json.loads((tmp_path / "e" / "card.json").read_text())
    assert 0 <= card["value"] <= 1
    assert card["count"] == 264


@pytest.mark.slow
def test_a_sampler_is_trained_on_a_frozen_generator_and_draws(
    data: Path, generator_run: Path, tokenizer_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sampler"
    options = ["task=sampler", *TINY, "trainer.val_check_interval=2", f"paths.data={data}", f"paths.run_dir={folder}"]
    said = run("train.py", *options, "trainer.max_steps=2", code=1)
    assert "set init_from to a run directory, checkpoint or converted folder of task=generator" in said
    said = run("train.py", *options, "trainer.max_steps=2", f"init_from={tokenizer_run}", code=1)
    assert "of task=tokenizer and has no generator" in said
    said = run("train.py", *options, "model.depth=2", f"init_from={generator_run}", "trainer.max_steps=2", code=1)
    assert "another generator than this run describes (transformer.depth: 1, not 2)" in said
    assert "Traceback" not in said
    both = [f"init_from={generator_run}", "resume_from=auto"]
    run("train.py", *options, "trainer.max_steps=2", *both)
    middle = io.read(folder)
    run("train.py", *options, "trainer.max_steps=4", *both)
    last, generator = io.read(folder), io.read(generator_run)
    assert last["global_step"] == 4
    frozen = io.weights(generator)
    for name, value in frozen.items():
        assert torch.equal(last["state_dict"][name], value), name
    trained = {name for name in last["state_dict"] if name not in frozen}
    assert {name.partition(".")[0] for name in trained} == {"refiner"}
    assert not all(torch.equal(last["state_dict"][name], middle["state_dict"][name]) for name in trained)
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert "val/generator_accuracy" in rows[0]
    assert list((folder / "pictures").glob("samples_*.png"))
    pictures = [tmp_path / name for name in ("complete", "named", "beside")]
    run("sample.py", f"ckpt={folder}", "prompt=a red circle", f"out={pictures[0]}")
    named = ["prompt=a red circle", "sampling=causal_driven"]
    run("sample.py", f"ckpt={generator_run}", f"refiner={folder}", *named, f"out={pictures[1]}")
    torch.save(export_refiner(io.read(folder)), tmp_path / "refiner.ckpt")
    torch.save(io.export(generator), tmp_path / "star.ckpt")
    run("sample.py", f"ckpt={tmp_path / 'star.ckpt'}", *named, f"out={pictures[2]}")
    drawn = [np.asarray(Image.open(folder / "00000.png")) for folder in pictures]
    assert all(np.array_equal(drawn[0], other) for other in drawn[1:])
    held = [json.loads((folder / "settings.json").read_text()) for folder in pictures]
    assert len({(settings["refiner"], settings["weights"]) for settings in held}) == 1
    (tmp_path / "refiner.ckpt").unlink()
    said = run("sample.py", f"ckpt={tmp_path / 'star.ckpt'}", *named, f"out={tmp_path / 'none'}", code=1)
    assert "needs a refiner: train one" in said
    assert not list((tmp_path / "none").glob("*.png"))
