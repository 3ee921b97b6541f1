from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from star.checkpoints.official import dump_tokenizer, dump_transformer
from star.checkpoints.released import USUAL, find_released, holds_tokenizer, import_released, schedule_of
from star.schedule import ScaleSchedule
from star.utils.cli import compose
from star.utils.instantiate import instantiate

FILES = {"transformer": ["exact.pth", "star_*.pth"], "tokenizer": ["vae.pth"], "text_encoder": ["CLIP"]}


def find(folder: Path) -> dict[str, Path]:
    return find_released(folder, FILES, name="pretrained=it", source="https://example.org/it")


def test_the_schedule_is_what_the_file_says(toys: Any) -> None:
    assert schedule_of(toys.write_star(), kind="star") == toys.schedule
    assert schedule_of(toys.write_var(), kind="var") == toys.schedule
    assert schedule_of(toys.write_star(tokenizer=True), kind="tokenizer") == toys.schedule


def test_a_published_number_of_scales_is_taken_for_a_published_schedule(
    toys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for count, sides in USUAL.items():
        flat = toys.write(f"{count}.pth", dump_transformer(toys.star(num_levels=count)))
        with caplog.at_level(logging.WARNING):
            assert schedule_of(flat, kind="star") == ScaleSchedule.square(*sides)
        assert f"only that there are {count}" in caplog.text
    with pytest.raises(ValueError, match="doesn't say which scales it was trained on: give schedule="):
        schedule_of(toys.write("flat.pth", dump_transformer(toys.star())), kind="star")


def test_the_usual_schedules_are_those_of_the_stages(toys: Any) -> None:
    for stage, count in (("256", 10), ("1024", 14)):
        assert instantiate(compose("train", [f"stage={stage}"]).schedule) == ScaleSchedule.square(*USUAL[count])


def test_every_kind_becomes_a_checkpoint_of_ours(toys: Any) -> None:
    star = import_released(toys.write_star(), kind="star")
    assert star["config"]["module"]["transformer"]["first_sample_text"] is True
    assert "docs/first_sample_text.md" in star["config"]["notes"]["first_sample_text"]
    own = import_released(toys.write_star(), kind="star", first_sample_text=False)["config"]
    assert own["module"]["transformer"]["first_sample_text"] is False
    assert not own["notes"]
    var = import_released(toys.write_var(), kind="var")
    assert var["config"]["module"]["transformer"]["first_sample_text"] is False
    assert var["state_dict"]["text_encoder.embedding.weight"].shape == (11, 32)
    assert var["config"]["module"]["text_encoder"]["num_classes"] == 10
    for kind, file in (("tokenizer", toys.write_tokenizer()), ("refiner", toys.write_sampler())):
        found = import_released(file, kind=kind, schedule=toys.schedule)
        assert {name.partition(".")[0] for name in found["state_dict"]} == {kind}


def test_the_wrong_kind_is_corrected(toys: Any) -> None:
    with pytest.raises(ValueError, match="is class-conditional VAR: use kind=var"):
        import_released(toys.write_var(), kind="star")
    with pytest.raises(ValueError, match="is STAR: use kind=star"):
        import_released(toys.write_star(), kind="var")
    with pytest.raises(ValueError, match="kind is one of star, var, tokenizer, refiner"):
        import_released(toys.write_star(), kind="vae")


def test_a_training_checkpoint_may_have_its_tokenizer(toys: Any) -> None:
    assert holds_tokenizer(toys.write_star("with.pth", tokenizer=True))
    assert not holds_tokenizer(toys.write_star("without.pth"))
    assert not holds_tokenizer(toys.write_var())


def test_the_first_name_that_is_there_counts(toys: Any) -> None:
    toys.write("vae.pth", dump_tokenizer(toys.tokenizer()))
    star = toys.write_star("star_1.pth")
    assert find(toys.folder) == {"transformer": star, "tokenizer": toys.folder / "vae.pth"}
    (toys.folder / "CLIP").mkdir()
    exact = toys.write_star("exact.pth")
    assert find(toys.folder) == {
        "transformer": exact,
        "tokenizer": toys.folder / "vae.pth",
        "text_encoder": toys.folder / "CLIP",
    }


def test_missing_files_are_named_with_their_source(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        find(tmp_path)
    for part in (
        "pretrained=it",
        "transformer: exact.pth (or star_*.pth)",
        "tokenizer: vae.pth",
        "https://example.org/it",
    ):
        assert part in str(caught.value)
    assert "CLIP" not in str(caught.value)


def test_several_candidates_are_not_guessed_from(tmp_path: Path) -> None:
    for name in ("star_1.pth", "star_2.pth"):
        torch.save({}, tmp_path / name)
    with pytest.raises(ValueError, match=r"may be the transformer: star_1\.pth, star_2\.pth; choose"):
        find(tmp_path)


def test_the_tokenizer_inside_of_the_generator_is_found(toys: Any) -> None:
    star = toys.write_star("exact.pth", tokenizer=True)
    assert find(toys.folder)["tokenizer"] == star
