from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from star.data.shapes import ShapesSettings, draw_sample, main, parse_arguments, write_shards
from star.data.shapes_captions import TAGS
from star.figures import COLORS, NEVER_SEEN, SHAPES, Figure, Scene, draw, held_out_by, is_held_out, stands

TINY = ShapesSettings(num_images=10, size=16, samples_per_shard=4)


def read(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def records(shards: list[Path]) -> list[dict[str, Any]]:
    return [json.loads(content) for shard in shards for name, content in read(shard).items() if name.endswith(".json")]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_nothing_held_out_occurs_in_training_images_or_captions(split: str) -> None:
    never = [f"{color} {shape}" for color, shape in NEVER_SEEN]
    for index in range(400):
        sample = draw_sample(ShapesSettings(num_images=400, split=split), index)
        assert not is_held_out(sample.scene.figures)
        assert not any(pair in caption for pair in never for caption in sample.captions)


def test_the_heldout_split_holds_nothing_else_and_both_kinds() -> None:
    settings = ShapesSettings(num_images=200, split="heldout")
    scenes = [draw_sample(settings, index).scene for index in range(200)]
    kinds = Counter(held_out_by(figure.pair for figure in scene.figures) for scene in scenes)
    assert set(kinds) == {"pair", "set"}
    assert min(kinds.values()) > 40


def test_metadata_is_true_of_the_scene() -> None:
    for index in range(300):
        sample = draw_sample(ShapesSettings(num_images=300), index)
        figures = sample.scene.figures
        metadata = sample.facts.metadata()
        assert sum(clause["count"] for clause in metadata["include"]) == len(figures)
        members = []
        for clause in metadata["include"]:
            mine = [figure for figure in figures if figure.shape == clause["class"]]
            assert len(mine) == clause["count"]
            assert clause.get("color") in {None, *(figure.color for figure in mine)}
            members.append(mine)
            if "position" in clause:
                relation, target = clause["position"]
                assert stands(mine[0], relation, members[target][0])
        assert metadata.get("exclude", []) == [
            {"class": clause["class"], "count": clause["count"] + 1}
            for clause in metadata["include"]
            if clause["count"] > 1
        ]


def test_every_tag_and_every_exact_form_occurs() -> None:
    settings = ShapesSettings(num_images=600)
    samples = [draw_sample(settings, index) for index in range(600)]
    exact = {s.facts.tag for s in samples if s.captions[0] == s.facts.exactly()}
    assert exact == set(TAGS)
    share = np.mean([caption == s.facts.exactly() for s in samples for caption in s.captions])
    assert 0.45 < share < 0.6
    assert {figure.shape for s in samples for figure in s.scene.figures} == set(SHAPES)
    assert {figure.color for s in samples for figure in s.scene.figures} == set(COLORS)


def test_weights_choose_the_tags() -> None:
    settings = ShapesSettings(num_images=50, weights={"counting": 1.0, "colors": 1.0})
    tags = Counter(draw_sample(settings, index).facts.tag for index in range(50))
    assert set(tags) == {"counting", "colors"}


def test_splits_and_seeds_draw_different_images() -> None:
    variants = [{}, {"seed": 1}, {"split": "validation"}]
    scenes = [draw_sample(ShapesSettings(num_images=1, **variant), 0).scene for variant in variants]
    assert len(set(scenes)) == 3


def test_shards_have_img2datasets_layout_and_draw_their_objects(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, TINY, workers=1, progress=False)
    assert [shard.name for shard in shards] == ["00000.tar", "00001.tar", "00002.tar"]
    files = read(shards[2])
    assert list(files) == ["000020000.png", "000020000.txt", "000020000.json"] + [
        f"000020001.{kind}" for kind in ("png", "txt", "json")
    ]
    for record in records(shards):
        image = np.asarray(Image.open(io.BytesIO(read(tmp_path / f"{record['key'][:5]}.tar")[f"{record['key']}.png"])))
        scene = Scene(tuple(record["background"]), tuple(Figure(**figure) for figure in record["objects"]))
        assert np.array_equal(image, draw(scene, 16))
        assert record["width"] == record["height"] == 16
        assert record["captions"][0] == record["caption"]
        assert len(record["captions"]) == TINY.captions_per_image
    assert files["000020000.txt"].decode() == records(shards)[8]["caption"]


def test_the_number_of_workers_changes_no_byte(tmp_path: Path) -> None:
    one = write_shards(tmp_path / "one", TINY, workers=1, progress=False)
    two = write_shards(tmp_path / "two", TINY, workers=2, progress=False)
    assert [shard.read_bytes() for shard in one] == [shard.read_bytes() for shard in two]


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, TINY, workers=1, progress=False)
    before = [shard.read_bytes() for shard in shards]
    shards[1].rename(tmp_path / "00001.tar.tmp")
    shards[0].write_bytes(b"kept")
    write_shards(tmp_path, TINY, workers=1, progress=False)
    assert [shard.read_bytes() for shard in shards] == [b"kept", *before[1:]]
    assert not list(tmp_path.glob("*.tmp"))


def test_ctrl_c_ends_with_the_shards_being_written(tmp_path: Path) -> None:
    """All processes of the terminal hear it, and one says so."""
    program = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL)\n"  # a suite in the background ignores it
        "os.execv(sys.executable, [sys.executable, '-m', 'star.data.shapes', *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", program, f"out={tmp_path}", "num_images=80000", "size=16", "samples_per_shard=4"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            for _ in range(1200):
                if process.poll() is not None or list(tmp_path.glob("*.tar")):
                    break
                time.sleep(0.05)
            assert process.poll() is None
            os.killpg(process.pid, signal.SIGINT)
            said, _ = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert said.endswith("stopped by ctrl-C\n")
    assert "Traceback" not in said
    assert len(list(tmp_path.glob("*.tar"))) < 10000
    assert not list(tmp_path.glob("*.tmp"))


def test_other_settings_in_the_same_folder_need_overwrite(tmp_path: Path) -> None:
    write_shards(tmp_path, TINY, workers=1, progress=False)
    smaller = ShapesSettings(num_images=3, size=16, samples_per_shard=4)
    with pytest.raises(ValueError, match="other settings \\(different: num_images\\)"):
        write_shards(tmp_path, smaller, workers=1, progress=False)
    write_shards(tmp_path, smaller, workers=1, overwrite=True, progress=False)
    assert [file.name for file in sorted(tmp_path.glob("*.tar"))] == ["00000.tar"]
    assert json.loads((tmp_path / "dataset.json").read_text())["num_images"] == 3


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(b"someone else's")
    with pytest.raises(ValueError, match="holds a data set of other settings"):
        write_shards(tmp_path, TINY, workers=1, progress=False)
    assert (tmp_path / "00000.tar").read_bytes() == b"someone else's"


def test_the_command_writes_what_it_is_told(tmp_path: Path) -> None:
    main(
        [
            f"out={tmp_path}",
            "num_images=3",
            "size=16",
            "split=heldout",
            "weights.counting=0",
            "progress=false",
            "workers=1",
        ]
    )
    assert len(records([tmp_path / "00000.tar"])) == 3
    written = json.loads((tmp_path / "dataset.json").read_text())
    assert written["split"] == "heldout"
    assert written["weights"]["counting"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["num_images=3"], "missing out=..."),
        (["out=x", "num_images=3", "sed=1"], "unknown argument 'sed=1'"),
        (["out=x", "num_images=three"], "num_images=three can't be read"),
        (["out=x", "num_images=3", "overwrite=1"], "use true or false"),
        (["out=x", "num_images=0"], "num_images must be at least 1, got 0"),
        (["out=x", "num_images=1", "split=test"], "unknown split 'test'"),
        (["out=x", "num_images=1", "exact=2"], "exact=2"),
        (["out=x", "num_images=1", "samples_per_shard=20000"], "samples_per_shard <= 10000"),
        (["out=x", "num_images=1", "weights.counting=-1"], "can't be negative"),
    ],
)
def test_users_mistakes_are_named(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_arguments(words)


def test_the_command_explains_itself_and_its_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    for entry in fields(ShapesSettings):
        told = next(line for line in said.splitlines() if line.startswith(f"  {entry.name}"))
        if entry.name not in ("num_images", "weights"):  # no default; each tag's own
            assert re.search(rf"(?:default {entry.default}\b|{entry.default} \(default\))", told), told
    with pytest.raises(SystemExit):
        main(["out=x", "sed=1"])
    assert "unknown argument 'sed=1'" in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        main([f"out={tmp_path / 'file'}", "num_images=1"])
    assert "File exists" in capsys.readouterr().err


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown tags \\['scenery'\\]"):
        ShapesSettings(num_images=1, weights={"scenery": 1.0})
