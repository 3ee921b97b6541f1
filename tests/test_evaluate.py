"""evaluate.py as typed in a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def shell(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HOME": str(home)}
    environment.pop("STAR_ASSETS", None)
    command = [sys.executable, "evaluate.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_help_explains_the_groups_and_a_missing_file_is_one_message(tmp_path: Path) -> None:
    told = shell("--help", home=tmp_path)
    assert told.returncode == 0
    for option in ("shapes", "fid_mjhq", "geneval", "likelihood"):
        assert option in told.stdout
    missing = shell("metric=fid_mjhq", "check=true", home=tmp_path)
    assert missing.returncode == 1
    assert "pt_inception-2015-12-05-6726825d.pth" in missing.stderr
    assert "Traceback" not in missing.stderr
