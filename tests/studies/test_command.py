from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from star.studies import command


def test_a_studys_own_settings_are_taken_out() -> None:
    own = {"steps": command.count, "names": command.words}
    given, rest = command.split_arguments(["steps=3", "stage=512", "names=[a,b]", "-x"], own)
    assert given == {"steps": 3, "names": ["a", "b"]}
    assert rest == ["stage=512", "-x"]
    with pytest.raises(ValueError, match="unknown argument 'stage=512'"):
        command.refuse(rest, list(own))
    command.refuse([], list(own))
    for word in ("steps=0", "steps=x"):
        with pytest.raises(ValueError, match=f"{word} can't be read"):
            command.split_arguments([word], own)
    assert command.dtype("bfloat16") == torch.bfloat16


def test_runs_take_turns() -> None:
    order: list[str] = []
    seconds = command.interleaved({name: lambda name=name: order.append(name) for name in "ab"}, warmup=1, repeats=2)
    assert "".join(order) == "ababab"
    assert [len(values) for values in seconds.values()] == [2, 2]


def test_rows_become_a_table_and_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "rows.json"
    command.present("a title", [{"name": "x", "value": 0.123456}], out, {"batch": 2})
    assert "0.1235" in capsys.readouterr().out
    record = json.loads(out.read_text())
    assert record["rows"] == [{"name": "x", "value": 0.123456}]
    assert record["batch"] == 2


def test_help_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    def study(arguments: object) -> None:
        raise ValueError("no")

    command.run("help text", study, ["--help"])
    assert capsys.readouterr().out == "help text"
    with pytest.raises(SystemExit):
        command.run("help text", study, [])


def test_a_precision_may_be_left_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command.dtype("bfloat16") == torch.bfloat16
    for found, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: {"avx512_bf16": found})
        assert command.dtype("auto") == expected
