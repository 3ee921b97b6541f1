from __future__ import annotations

import importlib
import json
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from star.studies.__main__ import choose, own_words
from star.studies.__main__ import main as run
from star.studies.page import write_page
from star.studies.registry import STUDIES, Study

# rows as each study writes them, agreeing with the paper
ROWS: dict[str, list[dict[str, Any]]] = {
    "positions": [
        {"position": "normalized", "loss": 2.0, "accuracy": 0.4},
        {"position": "absolute", "loss": 3.0, "accuracy": 0.2},
    ],
    "progressive": [
        {"position": "normalized", "share of steps": 0.3, "target loss": 3.0, "last loss from 64": 2.0},
        {"position": "absolute", "share of steps": "-", "target loss": 3.0, "last loss from 64": 4.0},
    ],
    "sizes": [
        {"depth": 2, "pixels": 64, "right": 0.1, "seconds a picture": 0.1},
        {"depth": 6, "pixels": 64, "right": 0.3, "seconds a picture": 0.2},
        {"depth": 6, "pixels": 128, "right": 0.5, "seconds a picture": 0.4},
    ],
    "topk": [
        {"top-k": 8, "alignment": 0.5, "fid": 9.0, "cmmd": 0.4},
        {"top-k": 512, "alignment": 0.2, "fid": 7.0, "cmmd": 0.5},
    ],
    "samplers": [
        {"sampler": name, "alignment": 0.3, "fid": fid, "cmmd": 0.1, "seconds": 0.1, "seeds": {}}
        for name, fid in (("ours small", 7.0), ("topk small", 8.0), ("smooth", 9.0))
    ],
    "windows": [
        {"train_tokens": "all", "times faster": 1.0, "times less memory": 1.0},
        {"train_tokens": "local_window", "times faster": 2.0, "times less memory": 2.0},
    ],
    "window_training": [
        {"training": name, "seconds": 9.0, "interval": [0.1, 0.3], "right": right, "share of the time": share}
        for name, right, share in (("all", 0.3, 1.0), ("window", 0.1, 0.4), ("window, then all", 0.28, 0.6))
    ],
    "locality": [
        {"block": 0, "near": 0.5, "near, uniform": 0.1, "own scale": 0.8, "own scale, uniform": 0.7},
        {"block": 1, "near": 0.2, "near, uniform": 0.1, "own scale": 0.6, "own scale, uniform": 0.7},
    ],
}


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "star.ckpt").write_bytes(b"")
    return folder


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_study_is_a_command_that_knows_its_arguments(study: Study) -> None:
    command = study.command(demo=Path("demo"), out=Path("out"), smoke=True, more=["seeds=1"])
    module = importlib.import_module(command[1])
    own = getattr(module, "OWN", None) or module.SETTINGS
    for word in (*command[2:-1],):
        key, equals, _ = word.partition("=")
        assert equals
        assert "{" not in word
        assert key in own or study.module in ("windows", "positions", "sizes", "progressive", "window_training"), word


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_what_agrees_agrees_and_the_reverse_does_not(study: Study) -> None:
    rows = ROWS[study.name]
    assert study.judge(rows)[0]
    names = [study.plot[0]] if isinstance(rows[0][study.plot[0]], str) else []
    turned = [{**other, **{name: row[name] for name in names}} for row, other in zip(rows, rows[::-1], strict=True)]
    agrees, said = study.judge(turned)
    assert not agrees
    assert any(letter.isdigit() for letter in said)


def test_the_page_shows_what_was_measured_and_nothing_else(tmp_path: Path) -> None:
    out, page = tmp_path / "out", tmp_path / "docs" / "studies.md"
    write_page(STUDIES, out, page)
    assert page.read_text().count("Not measured yet") == len(STUDIES)
    for study in STUDIES:
        path = study.path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({study.rows_in: ROWS[study.name], "steps": 7, "beside": [{"x": 1}]}))
    write_page(STUDIES, out, page)
    text = page.read_text()
    assert "Not measured yet" not in text
    assert "beside" not in text
    assert "steps 7" in text
    assert text.count("*The miniature* agrees") == len(STUDIES)
    assert sum(line.startswith("| ---") for line in text.splitlines()) == len(STUDIES)
    for study in STUDIES:
        assert (page.parent / "images" / "studies" / f"{study.name}.png").is_file()


def test_studies_are_chosen_by_name() -> None:
    assert [study.name for study in choose(["topk", "positions"])] == ["positions", "topk"]
    with pytest.raises(ValueError, match="unknown study 'colour'"):
        choose(["colour"])


def test_settings_reach_their_own_study() -> None:
    assert own_words(["topk.images=1", "positions.model.depth=2"]) == {
        "topk": ["images=1"],
        "positions": ["model.depth=2"],
    }
    with pytest.raises(ValueError, match="unknown argument"):
        own_words(["steps=3"])


def test_a_finished_study_is_not_run_again(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def pretend(command: list[str], **_: Any) -> int:
        ran.append(command)
        (tmp_path / "out" / "locality.json").write_text(json.dumps({"rows": ROWS["locality"]}))
        return 0

    monkeypatch.setattr("star.demo.steps.run_to_its_end", pretend)
    words = [f"demo={demo}", f"out={tmp_path / 'out'}", f"page={tmp_path / 'page.md'}", "only=locality"]
    run(words)
    run(words)
    assert len(ran) == 1
    assert "*The miniature* agrees" in (tmp_path / "page.md").read_text()
    run([*words, "locality.images=2"])
    assert "images=2" in ran[1]


def test_a_study_of_another_refiner_is_run_again(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's refiner is trained behind `star.ckpt`, which stays as it is when only the refiner changes."""
    ran: list[str] = []
    monkeypatch.setattr("star.demo.steps.run_to_its_end", lambda command, **_: ran.append(command[2]) or 0)
    refiner = demo / "refiner.ckpt"
    refiner.write_bytes(b"")
    words = [f"demo={demo}", f"out={tmp_path / 'out'}", f"page={tmp_path / 'page.md'}", "only=locality,samplers"]
    for changed in (1, 1, 2):
        os.utime(refiner, (changed, changed))
        run(words)
    assert sorted(ran) == ["star.studies.locality", "star.studies.samplers", "star.studies.samplers"]


def test_studies_run_side_by_side_and_those_that_take_times_alone(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two of the first kind wait for each other, which only ends when both run; one failure doesn't stop the rest."""
    both, running, alone = threading.Barrier(2), Counter[str](), []

    def pretend(command: list[str], *, environments: list[dict[str, str]], stdout: Any = None, **_: Any) -> int:
        name = command[2].removeprefix("star.studies.")
        running[name] += 1
        if name in ("topk", "locality"):
            assert environments[0]["OMP_NUM_THREADS"] == "3"
            print("step 7 of 8", file=stdout, flush=True)
            both.wait(timeout=30)
            time.sleep(0.1)
        else:
            alone.append(stdout is None and running.total() == 1)
        running[name] -= 1
        return int(name == "topk")

    monkeypatch.setattr("star.demo.steps.run_to_its_end", pretend)
    monkeypatch.setattr("star.studies.__main__.os.cpu_count", lambda: 6)
    monkeypatch.setattr("star.studies.__main__.MINUTE", 0.02)
    caplog.set_level("INFO")
    words = [f"demo={demo}", f"out={tmp_path / 'out'}", f"page={tmp_path / 'page.md'}", "jobs=2"]
    with pytest.raises(SystemExit):
        run([*words, "only=topk,locality,windows,samplers"])
    assert alone == [True, True]
    assert "locality: step 7 of 8" in caplog.text
    assert f"{tmp_path / 'out' / 'topk.log'} says why" in caplog.text


def test_an_interrupted_run_begins_nothing_more(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def pretend(command: list[str], **_: Any) -> int:
        begun.append(command[2])
        time.sleep(0.3)  # it saves what it has
        return 1

    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("star.demo.steps.run_to_its_end", pretend)
    monkeypatch.setattr("star.studies.__main__.wait", interrupt)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run([f"demo={demo}", f"out={tmp_path / 'out'}", f"page={tmp_path / 'page.md'}", "jobs=2"])
    assert len(begun) == 2


def test_a_demo_is_needed(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run([f"demo={tmp_path}"])
