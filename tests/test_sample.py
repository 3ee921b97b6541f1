"""sample.py as typed in a shell, before anything is opened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ckpt=x"], "set either prompt=CAPTION or prompts=FILE"),
        (["ckpt=x", "prompt=a cat", "prompts=cats.txt"], "set either prompt=CAPTION or prompts=FILE"),
        (["ckpt=x", "prompt=a cat", "seed=1.5"], "a seed is a whole number between 0 and"),
        (["prompt=a cat"], "set either ckpt=RUN_OR_FILE or pretrained=NAME weights=DIR: neither is"),
    ],
)
def test_what_is_missing_or_too_much_is_one_message(words: list[str], message: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "sample.py", *words, f"out={tmp_path / 'out'}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
