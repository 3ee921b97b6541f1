"""The pictures of the documentation can be made anew."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_pictures_of_the_concepts_are_made_by_the_code(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"tokenizer={project / 'outputs' / 'demo' / 'tokenizer.ckpt'}", f"out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["pictures.py", *words])
    runpy.run_path(str(ROOT / "docs" / "pictures.py"), run_name="__main__")
    shown = set(re.findall(r"\(images/(\w+\.png)\)", (ROOT / "docs" / "concepts.md").read_text()))
    assert shown == {path.name for path in tmp_path.glob("*.png")}


def test_help_says_what_can_be_set(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["pictures.py", "--help"])
    runpy.run_path(str(ROOT / "docs" / "pictures.py"), run_name="__main__")
    assert "out=docs/images" in capsys.readouterr().out


def test_unknown_words_are_refused(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["pictures.py", "size=3"])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(ROOT / "docs" / "pictures.py"), run_name="__main__")
    assert caplog.messages == ["unknown argument 'size': expected tokenizer= or out="]
