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

from star.checkpoints.named import read_named
from star.checkpoints.official import dump_tokenizer, dump_transformer
from star.checkpoints.pretrained import write_pretrained
from star.drawing import open_pipeline
from star.utils.cli import compose, plain
from star.utils.instantiate import instantiate, instantiate_trusted

CONF = Path(__file__).parents[2] / "conf"
LAYOUT = json.loads((Path(__file__).parents[1] / "golden" / "checkpoint_layout.json").read_text())["models"]
NAMES = {
    "star_256_d16": "star-d16-256",
    "star_256": "star-d30-256",
    "star_512": "star-d30-512",
    "star_1024": "star-d30-1024",
    **{f"var_d{depth}": f"var_d{depth}" for depth in (16, 20, 24, 30, 36)},
}
TOY = [
    "model.depth=2",
    "model.width=32",
    "model.num_heads=4",
    "schedule.sizes=[1,2,3]",
    "tokenizer.encoder.channels=32",
    "tokenizer.encoder.multipliers=[1,2]",
    "tokenizer.encoder.num_res_blocks=1",
    "tokenizer.quantizer.codebook_size=24",
    "tokenizer.quantizer.code_width=8",
]
READS = ["text_encoder=word_transformer", "text_encoder.width=12"]


def config(name: str, *overrides: str) -> dict[str, Any]:
    return plain(compose("sample", [f"pretrained={name}", *overrides]))


@pytest.fixture
def folder(toys: Any) -> Path:
    """STAR's and VAR's toys under their published names."""
    toys.write_star("star_256.pth")
    toys.write("var_d16.pth", dump_transformer(toys.var(), class_embedding=torch.randn(1001, 32)))
    toys.write_tokenizer("vae_ch160v4096z32.pth")
    return toys.folder


@pytest.mark.parametrize("name", NAMES)
def test_every_published_model_is_what_its_configuration_builds(toys: Any, name: str) -> None:
    """Names and shapes of all tensors, and the scales."""
    configured, layout = config(name), LAYOUT[NAMES[name]]
    with torch.device("meta"):
        model, encoder = (instantiate(configured[part]) for part in ("model", "text_encoder"))
        classes = encoder.embedding.weight if name.startswith("var") else torch.empty(1001, model.width)
    written = dump_transformer(model, class_embedding=classes)
    expected = {key: tuple(shape) for key, (shape, _, _) in layout["keys"].items()}
    assert {key: tuple(value.shape) for key, value in written.items()} == expected
    assert instantiate(configured["schedule"]).sizes == tuple((side, side) for side in layout["patch_nums"])
    assert configured["model"]["first_sample_text"] is name.startswith("star")


def test_the_published_tokenizer_is_what_its_configuration_builds(toys: Any) -> None:
    configured, layout = config("star_256"), LAYOUT["vae_ch160v4096z32"]
    with torch.device("meta"):
        tokenizer = instantiate(configured["tokenizer"])
    written = dump_tokenizer(tokenizer, schedule=instantiate(configured["schedule"]))
    expected = {key: tuple(shape) for key, (shape, _, _) in layout["keys"].items()}
    assert {key: tuple(value.shape) for key, value in written.items()} == expected


def test_released_files_become_a_checkpoint(toys: Any, folder: Path) -> None:
    found = read_named(config("star_256", f"weights={folder}", *TOY, *READS))
    module = found["config"]["module"]
    assert module["transformer"]["first_sample_text"] is True
    assert instantiate_trusted(module["schedule"]) == toys.schedule
    assert {name.partition(".")[0] for name in found["state_dict"]} == {"transformer", "tokenizer"}
    classes = read_named(config("var_d16", f"weights={folder}", *TOY))
    assert classes["state_dict"]["text_encoder.embedding.weight"].shape == (1001, 32)


def test_a_file_of_the_sampler_training_brings_its_refiner(toys: Any, folder: Path) -> None:
    (folder / "star_256.pth").unlink()
    toys.write_sampler("star_256.pth")
    found = read_named(config("star_256", f"weights={folder}", *TOY, *READS))
    assert found["config"]["module"]["refiner"]["depth"] == 3
    with torch.device("meta"):
        expected = instantiate(found["config"]["module"]["refiner"]).state_dict()
    assert {name for name in found["state_dict"] if name.startswith("refiner.")} == {f"refiner.{k}" for k in expected}


def test_the_switch_can_be_turned_off(folder: Path) -> None:
    found = read_named(config("star_256", f"weights={folder}", "model.first_sample_text=false", *TOY, *READS))
    assert found["config"]["module"]["transformer"]["first_sample_text"] is False


def test_a_text_encoder_that_lies_beside_is_used_unless_another_path_is_given(folder: Path) -> None:
    clip = folder / "CLIP" / "text_encoder"
    clip.mkdir(parents=True)
    widths = ["text_encoder.pooled_width=12", "text_encoder.context_width=12"]
    for given, expected in (
        ([], str(clip)),
        (["text_encoder.weights=/else/where"], "/else/where"),
        (["text_encoder.weights=null"], None),
    ):
        found = read_named(config("star_256", f"weights={folder}", *TOY, *widths, *given))
        assert found["config"]["module"]["text_encoder"]["weights"] == expected


def test_other_sizes_than_the_configurations_are_refused(folder: Path) -> None:
    wrong = [override.replace("depth=2", "depth=3") for override in TOY]
    with pytest.raises(ValueError, match=r"star_256\.pth isn't the model of pretrained=star_256 \(depth: 2, not 3\)"):
        read_named(config("star_256", f"weights={folder}", *wrong, *READS))


def test_without_a_folder_it_says_what_is_needed(toys: Any) -> None:
    with pytest.raises(ValueError, match=r"pretrained=star_1024 needs weights=DIR.*huggingface\.co/taocrayon/STAR"):
        read_named(config("star_1024"))
    with pytest.raises(FileNotFoundError, match=r"vae_ch160v4096z32\.pth(.|\n)*huggingface\.co/FoundationVision/var"):
        read_named(config("var_d30", f"weights={toys.folder}"))


def test_a_converted_folder_describes_itself(
    toys: Any, folder: Path, same: Callable[..., bool], caplog: pytest.LogCaptureFixture
) -> None:
    whole = read_named(config("star_256", f"weights={folder}", *TOY, *READS))
    write_pretrained(folder / "ours", whole)
    with caplog.at_level(logging.WARNING):
        again = read_named(config("star_256", f"weights={folder / 'ours'}", *TOY, *READS))
        assert not caplog.records
        read_named(config("star_512", f"weights={folder / 'ours'}", *READS))
    assert same(again["state_dict"], whole["state_dict"])
    assert again["config"]["module"] == whole["config"]["module"]
    (warning,) = caplog.records
    for part in ("describes itself", "pretrained=star_512", "depth: 2, not 30", "schedule: 1 2 3, not 1 2 3 4 6"):
        assert part in warning.getMessage()


def test_only_the_place_of_a_converted_folders_text_encoder_is_taken_from_elsewhere(folder: Path) -> None:
    widths = ["text_encoder.pooled_width=12", "text_encoder.context_width=12"]
    write_pretrained(folder / "ours", read_named(config("star_256", f"weights={folder}", *TOY, *widths)))
    ours = f"weights={folder / 'ours'}"
    moved = read_named(config("star_256", ours, "text_encoder.weights=/else/where"))["config"]["module"]["text_encoder"]
    assert (moved["weights"], moved["pooled_width"]) == ("/else/where", 12)
    other = read_named(config("star_256", ours, "text_encoder.weights=/else/where", "text_encoder.layers=22"))
    assert other["config"]["module"]["text_encoder"]["weights"] == "laion2b_s32b_b79k"


def test_pictures_come_from_either_a_checkpoint_or_a_release(toys: Any, folder: Path) -> None:
    released = config("var_d16", f"weights={folder}", "device=cpu", "speed.weights=as_is", *TOY)
    pipeline, settings = open_pipeline(released)
    picture = pipeline.draw(["7"], [0])
    assert settings["sampling"]["sampler"]["top_k"] == 900
    assert settings["model"]["transformer"]["adaptive_norm"] == "own"
    pipeline.save_pretrained(folder / "ours")
    converted, _ = open_pipeline(config("var_d16", f"weights={folder / 'ours'}", "device=cpu", *TOY))
    assert torch.equal(converted.draw(["7"], [0]), picture)
    assert converted.identity == pipeline.identity
    for overrides, problem in (([], "neither is"), (["pretrained=star_256", "ckpt=x"], "both are set")):
        with pytest.raises(ValueError, match=f"set either ckpt=RUN_OR_FILE or pretrained=NAME weights=DIR: {problem}"):
            open_pipeline(plain(compose("sample", overrides)))


def test_a_preset_is_the_folders_own_only_if_it_has_one(folder: Path) -> None:
    own = ["sampling=from_checkpoint", "sampling.sampler.top_k=5", "device=cpu", *TOY]
    with pytest.raises(ValueError, match=r"has no sampling preset: choose one, e\.g\. sampling=topk600"):
        open_pipeline(config("var_d16", f"weights={folder}", *own))
    plainly = config("var_d16", f"weights={folder}", "device=cpu", "speed.weights=as_is", *TOY)
    open_pipeline(plainly)[0].save_pretrained(folder / "ours")
    _, settings = open_pipeline(config("var_d16", f"weights={folder / 'ours'}", *own))
    assert settings["sampling"]["sampler"] == {
        "_target_": "star.sampling.samplers.TopKTopP",
        "top_k": 5,
        "top_p": 0.95,
        "temperature": 1.0,
    }


def test_the_command_needs_nothing_else(folder: Path) -> None:
    command = [
        sys.executable,
        "sample.py",
        "pretrained=var_d16",
        f"weights={folder}",
        "prompt=7",
        f"out={folder / 'out'}",
    ]
    run = subprocess.run([*command, *TOY], cwd=CONF.parent, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert (folder / "out" / "00000.png").is_file()
