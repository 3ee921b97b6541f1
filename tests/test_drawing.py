from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from star.drawing import draw, plan
from star.schedule import ScaleSchedule
from star.utils.png import write_png as save

SETTINGS = {"negative_prompt": "", "sampling": {}}
PROMPTS = [{"prompt": f"p{i}"} for i in range(5)]


class Pipeline:
    """Pictures whose colour tells their seed; remembers the batches it was asked for."""

    identity = "weights"
    schedule = ScaleSchedule.square(1, 2)

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], *, negative_prompt: str = "", watch: Any) -> Tensor:
        for step in ((0, 1, 1), (1, 1, 2), (1, 2, 2)):
            watch(*step)
        self.asked.append(list(seeds))
        return torch.tensor(seeds).float().div(255).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def drawing(out: Path, **arguments: Any) -> Pipeline:
    pipeline = Pipeline()
    requests = plan(PROMPTS, num_images=2, seed=3)
    draw(pipeline, requests, out, **{"batch": 4, "settings": SETTINGS} | arguments)  # type: ignore[arg-type]
    return pipeline


def test_index_and_pictures_belong_together(tmp_path: Path) -> None:
    drawing(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [3, 4] * 5
    assert [row["file"] for row in rows] == [f"{i:05d}.png" for i in range(10)]
    for row in rows:
        with Image.open(tmp_path / row["file"]) as image:
            assert np.asarray(image)[0, 0, 0] == row["seed"]
            assert image.text["prompt"] == row["prompt"]  # type: ignore[attr-defined]


def test_a_second_run_draws_what_is_missing_in_the_same_batches(tmp_path: Path) -> None:
    first = drawing(tmp_path)
    assert [len(seeds) for seeds in first.asked] == [4, 4, 2]
    assert drawing(tmp_path).asked == []
    (tmp_path / "00005.png").unlink()
    assert drawing(tmp_path).asked == [first.asked[1]]


@pytest.mark.parametrize("batch", [0, -1, "many"])
def test_a_batch_has_pictures(tmp_path: Path, batch: Any) -> None:
    with pytest.raises(ValueError, match=f"at least 1, got {batch!r}"):
        drawing(tmp_path, batch=batch)


def test_ranks_share_the_batches_of_one_process(tmp_path: Path) -> None:
    whole = drawing(tmp_path / "one")
    parts = [drawing(tmp_path / "two", rank=rank, world=2) for rank in range(2)]
    assert sorted(parts[0].asked + parts[1].asked) == sorted(whole.asked)
    names = [sorted(path.name for path in (tmp_path / each).glob("*.png")) for each in ("one", "two")]
    assert names[0] == names[1]


def test_other_settings_or_unknown_pictures_are_refused(tmp_path: Path) -> None:
    drawing(tmp_path / "a")
    with pytest.raises(FileExistsError, match="other settings or weights"):
        drawing(tmp_path / "a", settings={**SETTINGS, "precision": "bf16"})
    save(torch.zeros(3, 4, 4), tmp_path / "b" / "x.png", {})
    with pytest.raises(FileExistsError, match="unknown settings"):
        drawing(tmp_path / "b")


def test_a_picture_is_never_listed_under_another_prompt_or_seed(tmp_path: Path) -> None:
    drawing(tmp_path)
    index = (tmp_path / "index.jsonl").read_text()
    for change in ({"prompts": PROMPTS[1:]}, {"seed": 4}, {"num_images": 3}):
        requests = plan(**{"prompts": PROMPTS, "num_images": 2, "seed": 3} | change)  # type: ignore[arg-type]
        with pytest.raises(FileExistsError, match=r"\.png was drawn from 'p\d' with seed \d, now asked for is"):
            draw(Pipeline(), requests, tmp_path, batch=4, settings=SETTINGS)  # type: ignore[arg-type]
    assert (tmp_path / "index.jsonl").read_text() == index
    more = plan([*PROMPTS, {"prompt": "p5"}], num_images=2, seed=3)
    pipeline = Pipeline()
    draw(pipeline, more, tmp_path, batch=4, settings=SETTINGS)  # type: ignore[arg-type]
    assert pipeline.asked == [[3, 4, 3, 4]]
    (tmp_path / "00000.png").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"00000\.png can't be read .*remove it"):
        drawing(tmp_path)


@pytest.mark.parametrize("batch", [0, -1, 2.5, None])
def test_a_batch_that_would_draw_nothing_is_refused(tmp_path: Path, batch: Any) -> None:
    with pytest.raises(ValueError, match="batch is a whole number of at least 1"):
        drawing(tmp_path / "out", batch=batch)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", [-1, 2**63 - 1, 1.5, "x", True])
def test_a_seed_that_is_none_is_named(seed: Any) -> None:
    for prompts, shared in (([{"prompt": "a", "seed": seed}], 0), ([{"prompt": "a"}], seed)):
        with pytest.raises(ValueError, match=f"a seed is a whole number .*got {seed!r} for the prompt 'a'"):
            plan(prompts, num_images=2, seed=shared)
    assert plan([{"prompt": "a", "seed": None}], num_images=1, seed=7)[0].seed == 7


def test_no_partial_picture_is_left(tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    with pytest.raises(OSError, match="could not write"):
        save(torch.zeros(3, 4, 4), tmp_path / "x.png", {})
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_layouts_and_counts(tmp_path: Path) -> None:
    assert plan(PROMPTS, num_images=2, seed=0, layout="geneval")[3].file == "00001/samples/00001.png"
    assert plan([{"prompt": "x", "seed": 9}], num_images=2, seed=0)[1].seed == 10
    for wrong in ({"layout": "tree"}, {"num_images": 0}, {"num_images": 1.5}):
        with pytest.raises(ValueError, match="layout is one of|at least 1"):
            plan(PROMPTS, **{"num_images": 1, "seed": 0} | wrong)  # type: ignore[arg-type]
