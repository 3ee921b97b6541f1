"""What make would run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("words", "arguments"), [((), ""), (("FRESH=1",), "fresh=true"), (("FRESH=0",), "fresh=0"), (("FRESH=",), "")]
)
@pytest.mark.parametrize(("target", "recipe"), [("demo", ""), ("emoji", "recipe=emoji")])
def test_only_fresh_1_starts_over(words: tuple[str, ...], arguments: str, target: str, recipe: str) -> None:
    """Anything else is handed on, and refused by the demo."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--dry-run", target, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    ran = next(line for line in done.stdout.splitlines() if "-m star.demo" in line)
    assert ran.partition("-m star.demo")[2].split() == [*recipe.split(), *arguments.split()]
