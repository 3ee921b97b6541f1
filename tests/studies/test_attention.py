from __future__ import annotations

import json
from pathlib import Path

import pytest

from star.schedule import ScaleSchedule
from star.studies.attention import main, measure


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_CONF", str(Path(__file__).parents[2] / "conf"))


def test_prefix_attention_makes_no_l_by_l_tensor() -> None:
    schedule = ScaleSchedule.square(1, 2, 4, 8, 16)
    dense, prefix = measure(schedule, (1, 2, schedule.total, 8), ["dense", "prefix"], "float32", "cpu", 1)
    assert dense["largest tensor"] == f"{schedule.total}x{schedule.total}"
    assert prefix["largest tensor"] == f"1x2x{schedule.total}x8"
    assert prefix["peak MiB"] < dense["peak MiB"]
    assert dense["times faster"] == 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "attention.json"
    main(["stage=64", "heads=1", "head_width=8", "repeats=1", "dtypes=float32,bfloat16", f"out={out}"])
    rows = json.loads(out.read_text())["rows"]
    assert [(row["dtype"], row["backend"]) for row in rows] == [
        (dtype, backend) for dtype in ("float32", "bfloat16") for backend in ("dense", "prefix")
    ]
    assert all(row["seconds"] > 0 for row in rows)
    with pytest.raises(SystemExit):
        main(["backends=flash"])
