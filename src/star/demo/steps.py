"""Steps that are done once: what is finished and unchanged is used again, what was interrupted goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from star.utils.files import write_atomically

log = logging.getLogger(__name__)

_RUNNING: set[subprocess.Popen[Any]] = set()


@dataclass(frozen=True)
class Step:
    """One piece of work.

    Attributes:
        name: what the record calls it.
        says: what it does, for the person who waits.
        command: arguments for Python, run from the project's root; or a function.
        recipe: everything that its result depends on besides the steps before; any JSON.
        owns: folders that are removed before a changed step runs anew.
        makes: what is there once it is finished; if any of it is gone, the step is done again.
        repeatable: whether that gives the same again; if not, what is behind it is done again, too.
        threads: what a command, or each of its processes, may use of the CPU; by default what PyTorch takes.
        processes: how many share a command's work, as torchrun starts them.
        output: file for what a command says, anew each time; by default it is shown.

    """

    name: str
    says: str
    command: Sequence[str] | Callable[[], None]
    recipe: Any = None
    owns: Sequence[Path] = ()
    makes: Sequence[Path] = ()
    repeatable: bool = True
    threads: int | None = None
    processes: int = 1
    output: Path | None = None


@dataclass
class Steps:
    """Runs steps in order and remembers them in a file.

    Attributes:
        record: where finished steps are remembered, with their seconds.

    """

    record: Path
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read what is there."""
        if self.record.is_file():
            self.done = json.loads(self.record.read_text())

    def run(self, steps: Sequence[Step]) -> None:
        """Do what isn't done. A step counts as done while its recipe and those of all steps before it are the same.

        One that has lost what it made is done again. Of a training, whose second run needn't end with the same weights,
        that changes all behind it.

        Raises:
            ChildProcessError: when a command fails; it has said why.
            FileNotFoundError: when a step hasn't made what it should.

        """
        before = ""
        for number, step in enumerate(steps, 1):
            before = fingerprint(before, step.name, step.recipe)
            held = self.done.get(step.name)
            if held is not None and held["finished"] and (gone := [path for path in step.makes if not path.exists()]):
                undone = [step] if step.repeatable else steps[number - 1 :]
                log.info("%s is gone: %s once more", gone[0], ", ".join(one.name for one in undone))
                self._undo(undone)
                held = self.done[step.name]
            title = f"[{number}/{len(steps)}] {step.name}: {step.says}"
            if held is not None and held["fingerprint"] == before and held["finished"]:
                log.info("%s - done before, in %.0f s", title, held["seconds"])
                continue
            if held is not None and held["fingerprint"] != before:
                for folder in step.owns:
                    shutil.rmtree(folder, ignore_errors=True)
                held = None
            log.info("%s", title)
            self._do(step, before, 0.0 if held is None else held["seconds"])

    def _undo(self, steps: Sequence[Step]) -> None:
        """Let these steps count as changed: each starts over when its turn comes."""
        for step in steps:
            if step.name in self.done:
                self.done[step.name] |= {"fingerprint": "", "finished": False}
        self._save()

    def _do(self, step: Step, mark: str, spent: float) -> None:
        self._note(step.name, fingerprint=mark, seconds=spent, finished=False)
        start = time.monotonic()
        try:
            if callable(step.command):
                step.command()
            elif run_command(step.command, step.threads, step.output, processes=step.processes) != 0:
                said = "" if step.output is None else f"; {step.output} says why"
                raise ChildProcessError(f"step {step.name} failed: python {' '.join(step.command)}{said}")
            if missing := [path for path in step.makes if not path.exists()]:
                raise FileNotFoundError(f"step {step.name} ended without {missing[0]}")
        except BaseException:
            self._note(step.name, fingerprint=mark, seconds=spent + time.monotonic() - start, finished=False)
            raise
        self._note(
            step.name,
            fingerprint=mark,
            seconds=spent + time.monotonic() - start,
            finished=True,
            peak_memory_gib=peak_memory(),
        )

    def _note(self, name: str, **facts: Any) -> None:
        self.done[name] = facts
        self._save()

    def _save(self) -> None:
        text = json.dumps(self.done, indent=2)
        write_atomically(self.record, lambda path: _write(path, text))


def run_command(
    words: Sequence[str], threads: int | None = None, output: Path | None = None, *, processes: int = 1
) -> int:
    """Run Python with these arguments, what it says shown or in a file; its exit code, or that of the first to fail."""
    command = [sys.executable, *words]
    environments = [{**environment(threads), **place} for place in places(processes)]
    if output is None:
        return run_to_its_end(command, environments=environments)
    with output.open("w") as file:
        return run_to_its_end(command, environments=environments, stdout=file, stderr=file)


def places(processes: int) -> list[dict[str, str]]:
    """What tells so many processes on this machine of one another, as torchrun would; nothing for a single one.

    Torchrun itself starts sessions of their own, which ctrl-C doesn't reach, and ends with pages of its own traces.
    """
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def run_to_its_end(command: Sequence[str], *, environments: Sequence[dict[str, str]], **settings: Any) -> int:
    """A command's exit code, run once in each environment, side by side; if one fails, the others are ended.

    One that hears ctrl-C, too, has the time to save, which `subprocess.run` doesn't give.
    """
    running: list[subprocess.Popen[Any]] = []
    with passing_on_sigterm():
        try:
            for own in environments:
                running.append(subprocess.Popen(command, env=own, **settings))
                _RUNNING.add(running[-1])
            return _wait(running)
        except (KeyboardInterrupt, SystemExit):
            log.info("waiting until it has saved; ctrl-C once more doesn't wait")
            for process in running:
                process.wait()
            raise
        finally:
            for process in running:
                process.kill()  # nothing if it is over
                process.wait()
                _RUNNING.discard(process)


def _wait(running: Sequence[subprocess.Popen[Any]]) -> int:
    """Until all have ended well, or one has not."""
    if len(running) == 1:
        return running[0].wait()
    while True:
        codes = [process.poll() for process in running]
        if failed := next((code for code in codes if code), 0):
            return failed
        if None not in codes:
            return 0
        time.sleep(0.1)


@contextmanager
def passing_on_sigterm() -> Iterator[None]:
    """Meanwhile, SIGTERM ends this process with 143 once the commands that it runs have heard it, too, and saved.

    A terminal sends ctrl-C to all processes; SIGTERM goes to one, whose commands would train on alone. Outside of the
    main thread, which alone hears signals, and where somebody else listens, nothing changes.
    """
    listens = threading.current_thread() is threading.main_thread()
    if not listens or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _pass_on(number: int, _: FrameType | None) -> None:
    for process in tuple(_RUNNING):
        process.send_signal(number)
    raise SystemExit(128 + number)


def environment(threads: int | None = None) -> dict[str, str]:
    """This process's environment; threads that wait spin for microseconds, then sleep, unless it says otherwise.

    Sleeping at once (`OMP_WAIT_POLICY=PASSIVE`) cost the demo's generator 15 % of its time on two idle cores; libgomp's
    default, 300,000 spins, half of it again beside two other processes.
    """
    own = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    told = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    return {**({} if told else {"GOMP_SPINCOUNT": "10000"}), **os.environ, **own}


def fingerprint(*parts: Any) -> str:
    """Sixteen hexadecimal digits that change with any of the parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def peak_memory() -> float:
    """The largest resident size so far of this process or any that it ran, in GiB."""
    sizes = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(sizes) / 2**20


def _write(path: Path, text: str) -> None:
    path.write_text(text)
