from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from star.demo.steps import Step, Steps, environment, fingerprint


def runner(tmp_path: Path, calls: list[str], *, recipe: int = 0, fail: str = "") -> list[Step]:
    def work(name: str) -> None:
        calls.append(name)
        if name == fail:
            raise RuntimeError("interrupted")
        (tmp_path / name).mkdir(exist_ok=True)

    return [
        Step("a", "first", lambda: work("a"), recipe=1),
        Step("b", "second", lambda: work("b"), recipe=recipe, owns=[tmp_path / "b"]),
        Step("c", "third", lambda: work("c")),
    ]


def test_finished_steps_are_used_again(tmp_path: Path) -> None:
    calls: list[str] = []
    record = tmp_path / "steps.json"
    Steps(record).run(runner(tmp_path, calls))
    Steps(record).run(runner(tmp_path, calls))
    assert calls == ["a", "b", "c"]
    assert all(step["finished"] for step in json.loads(record.read_text()).values())


def test_a_changed_recipe_redoes_the_step_and_all_behind_it(tmp_path: Path) -> None:
    calls: list[str] = []
    record = tmp_path / "steps.json"
    Steps(record).run(runner(tmp_path, calls))
    (tmp_path / "b" / "old").touch()
    Steps(record).run(runner(tmp_path, calls, recipe=2))
    assert calls == ["a", "b", "c", "b", "c"]
    assert not (tmp_path / "b" / "old").exists()


def made(tmp_path: Path, calls: list[str], *, fail: str = "") -> list[Step]:
    """The same steps, each with what it makes; the second, like a training, doesn't give the same twice."""
    steps = runner(tmp_path, calls, fail=fail)
    return [replace(step, makes=[tmp_path / step.name], repeatable=step.name != "b") for step in steps]


@pytest.mark.parametrize(("lost", "again"), [("a", ["a"]), ("b", ["b", "c"]), ("c", ["c"])])
def test_what_was_made_and_is_gone_is_made_again_with_all_that_may_differ_by_it(
    lost: str, again: list[str], tmp_path: Path
) -> None:
    calls: list[str] = []
    record = tmp_path / "steps.json"
    Steps(record).run(made(tmp_path, calls))
    shutil.rmtree(tmp_path / lost)
    Steps(record).run(made(tmp_path, calls))
    assert calls == ["a", "b", "c", *again]
    Steps(record).run(made(tmp_path, calls))
    assert calls == ["a", "b", "c", *again]
    assert list(json.loads(record.read_text())) == ["a", "b", "c"]


def test_what_is_made_again_starts_over_when_its_turn_comes_and_goes_on_if_interrupted(tmp_path: Path) -> None:
    calls: list[str] = []
    record = tmp_path / "steps.json"

    def steps(*, fail: str = "") -> list[Step]:
        first, second, third = made(tmp_path, calls, fail=fail)
        return [first, replace(second, makes=[tmp_path / "b" / "made"]), replace(third, owns=[tmp_path / "c"])]

    for name in ("b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "made").touch()
    Steps(record).run([replace(step, owns=()) for step in steps()])
    for left in ("b/left", "c/left"):
        (tmp_path / left).touch()
    (tmp_path / "b" / "made").unlink()
    with pytest.raises(RuntimeError, match="interrupted"):
        Steps(record).run(steps(fail="b"))
    assert not (tmp_path / "b").exists()
    assert (tmp_path / "c" / "left").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "made").touch()  # by what was interrupted
    Steps(record).run(steps())
    assert (tmp_path / "b" / "made").exists()
    assert not (tmp_path / "c" / "left").exists()
    assert calls == ["a", "b", "c", "b", "b", "c"]


def test_a_step_that_has_not_made_what_it_should_is_named(tmp_path: Path) -> None:
    record = tmp_path / "steps.json"
    step = Step("a", "first", lambda: None, makes=[tmp_path / "made"])
    with pytest.raises(FileNotFoundError, match="step a ended without .*made"):
        Steps(record).run([step])
    assert not json.loads(record.read_text())["a"]["finished"]


def test_an_interrupted_step_goes_on_where_it_was(tmp_path: Path) -> None:
    calls: list[str] = []
    record = tmp_path / "steps.json"
    with pytest.raises(RuntimeError, match="interrupted"):
        Steps(record).run(runner(tmp_path, calls, fail="b"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "checkpoint").touch()
    Steps(record).run(runner(tmp_path, calls))
    assert calls == ["a", "b", "b", "c"]
    assert (tmp_path / "b" / "checkpoint").exists()


def test_a_failing_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(ChildProcessError, match="step x failed: python -c"):
        Steps(tmp_path / "steps.json").run([Step("x", "fails", ["-c", "raise SystemExit(3)"])])


def test_processes_share_a_command(tmp_path: Path) -> None:
    script = tmp_path / "share.py"
    script.write_text(
        "import os, pathlib\n"
        "name = os.environ['RANK'] + ' of ' + os.environ['WORLD_SIZE']\n"
        f"(pathlib.Path({str(tmp_path)!r}) / name).write_text(os.environ['OMP_NUM_THREADS'])\n"
    )
    Steps(tmp_path / "steps.json").run([Step("a", "sharing", [str(script)], threads=1, processes=2)])
    assert [(tmp_path / f"{rank} of 2").read_text() for rank in range(2)] == ["1", "1"]


def test_shared_work_that_fails_in_one_process_ends_in_all_and_is_tried_once(tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    code = (
        "import os, sys, time\n"
        f"print(os.environ['RANK'], file=open({str(tries)!r}, 'a'))\n"
        "sys.exit('no such model') if os.environ['RANK'] == '1' else time.sleep(60)\n"
    )
    begun = time.monotonic()
    with pytest.raises(ChildProcessError, match="step a failed"):
        Steps(tmp_path / "steps.json").run([Step("a", "failing", ["-c", code], threads=1, processes=2)])
    assert time.monotonic() - begun < 30
    assert set(tries.read_text().split()) <= {"0", "1"}
    assert len(tries.read_text().split()) <= 2


@pytest.mark.parametrize("told", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}], ids=str)
def test_who_says_how_threads_wait_is_heard(told: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    found = {name: value for name, value in environment(2).items() if name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    assert found == (told or {"GOMP_SPINCOUNT": "10000"})
    assert environment(2)["OMP_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in environment()


def test_fingerprints_follow_content() -> None:
    assert fingerprint("a", {"x": 1}) == fingerprint("a", {"x": 1})
    assert fingerprint("a", {"x": 1}) != fingerprint("a", {"x": 2})


def test_the_seconds_of_an_interrupted_step_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count(0, 10)
    monkeypatch.setattr("star.demo.steps.time.monotonic", lambda: next(clock))
    calls: list[str] = []
    record = tmp_path / "steps.json"
    with pytest.raises(RuntimeError, match="interrupted"):
        Steps(record).run(runner(tmp_path, calls, fail="b"))
    Steps(record).run(runner(tmp_path, calls))
    seconds = {name: step["seconds"] for name, step in json.loads(record.read_text()).items()}
    assert seconds == {"a": 10, "b": 20, "c": 10}


SAVES = """
import signal, sys, time
from pathlib import Path

def save(*_):
    time.sleep(1)
    Path(sys.argv[1], "saved").touch()
    raise SystemExit(130)

signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
Path(sys.argv[1], "ready").touch()
time.sleep(60)
"""
RUNS = """
import signal, sys
from star.demo.steps import run_command

signal.signal(signal.SIGINT, signal.default_int_handler)
run_command(["-c", *sys.argv[1:]])
"""


RUNS_IN_A_THREAD = """
import sys
from concurrent.futures import ThreadPoolExecutor
from star.demo.steps import passing_on_sigterm, run_command

with passing_on_sigterm(), ThreadPoolExecutor(1) as pool:
    pool.submit(run_command, ["-c", *sys.argv[1:]]).result()
"""


def running(program: str, folder: Path) -> subprocess.Popen[bytes]:
    runs = subprocess.Popen(
        [sys.executable, "-c", program, SAVES, str(folder)], start_new_session=True, stderr=subprocess.DEVNULL
    )
    while not (folder / "ready").exists():
        assert runs.poll() is None
        time.sleep(0.05)
    return runs


def test_a_command_that_hears_ctrl_c_has_the_time_to_save(tmp_path: Path) -> None:
    """A terminal sends it to all of its processes."""
    runs = running(RUNS, tmp_path)
    os.killpg(runs.pid, signal.SIGINT)
    assert runs.wait(timeout=60) != 0
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("program", [RUNS, RUNS_IN_A_THREAD], ids=["alone", "thread"])
def test_who_is_told_to_end_tells_its_command_and_waits_until_it_has_saved(tmp_path: Path, program: str) -> None:
    """SIGTERM is sent to one process; what that runs would go on alone."""
    runs = running(program, tmp_path)
    runs.terminate()
    assert runs.wait(timeout=60) == 128 + signal.SIGTERM
    assert (tmp_path / "saved").exists()
