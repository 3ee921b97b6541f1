from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from star.report import Run, lines, main, markdown, named, read_run

pytestmark = pytest.mark.filterwarnings("ignore")


def done(metric: str, value: float, **more: Any) -> dict[str, Any]:
    base = {"metric": metric, "status": "done", "value": value, "label": metric, "standard": True, "results": {}}
    return base | more


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """One metric in a folder, several in another, one of them with other features."""
    contents: dict[str, Any] = {
        "a": done("fid_mjhq", 6.5, results={"categories": {"art": 7.0, "food": 6.0}}),
        "b": {
            "cards": {
                "fid_mjhq": done("fid_mjhq", 100.0, label="fid/effnet", standard=False),
                "latency": done("latency", 0.1, interval=[0.05, 0.2]),
                "cmmd": {"metric": "cmmd", "status": "missing", "value": None},
            }
        },
    }
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "card.json").write_text(json.dumps(content))
    return [tmp_path / "a", tmp_path / "b"]


def test_numbers_of_other_protocols_have_rows_of_their_own(runs: list[Path]) -> None:
    table = lines([read_run(path) for path in runs])
    assert table[0] == ["metric", "a", "b"]
    assert [row for row in table if row[0].startswith("fid_mjhq")] == [
        ["fid_mjhq (fid_mjhq)", "6.5", ""],
        ["fid_mjhq (fid/effnet, not standard)", "", "100"],
    ]
    assert ["cmmd (missing)", "", "missing"] in table
    assert ["latency (latency)", "", "0.1 [0.05, 0.2]"] in table
    assert markdown(table).count("\n") == len(table) + 1


def test_command_writes_table_and_plots(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(path) for path in runs] + [f"out={tmp_path / 'report'}"])
    assert "fid_mjhq" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"report.md", "fid_mjhq_parts.png", "fid_mjhq_against_time.png"}


def test_other_counts_and_other_references_are_not_put_side_by_side() -> None:
    def run(name: str, **card: Any) -> Run:
        return Run(name, {"fid": done("fid", 1.0, **card)})

    few = {"standard": False, "deviations": ["40 pictures instead of 30000"]}
    table = lines([run("a", **few), run("b", facts={"reference": "x"}), run("c", facts={"reference": "y"})])
    assert [row[0] for row in table[1:]] == [
        "fid (fid, not standard, 40 pictures instead of 30000)",
        "fid (fid, to x)",
        "fid (fid, to y)",
    ]


def test_folders_of_one_name_are_told_apart() -> None:
    runs = [Run("out", {}), Run("out", {}), Run("c", {})]
    found = named(runs, [Path("/x/a/out"), Path("/x/b/out"), Path("/x/c")])
    assert [run.name for run in found] == ["a/out", "b/out", "c"]


def test_wrong_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match="no card at"):
        read_run(tmp_path)
    (tmp_path / "card.json").write_text("[]")
    with pytest.raises(ValueError, match=r"is no card of evaluate\.py"):
        read_run(tmp_path)
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "is no card" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"metric": "x"}', '{"cards": [1]}', '{"cards": {"x": {"metric": "x"}}}', "\xff"])
def test_files_that_are_no_cards_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "card.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"card\.json is no card of evaluate\.py"):
        read_run(tmp_path)


def test_nothing_to_report_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([f"out={tmp_path / 'report'}"])
    assert "give at least one EVALUATION" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
