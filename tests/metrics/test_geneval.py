from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from star.metrics.geneval import PROMPTS_SHA256, TASKS, build_prompts, prompts_text, read_results, result_line

FACTS = json.loads((Path(__file__).parents[1] / "golden" / "eval" / "GOLD.json").read_text())["geneval_rules.json"]
pytestmark = pytest.mark.filterwarnings("ignore")


def test_prompts_are_the_published_file_byte_for_byte() -> None:
    text = prompts_text()
    assert hashlib.sha256(text.encode()).hexdigest() == PROMPTS_SHA256
    assert FACTS["prompts"]["evaluation_metadata_jsonl_sha256"] == PROMPTS_SHA256
    assert len(text.splitlines()) == FACTS["prompts"]["count"]


def test_tasks_have_their_counts() -> None:
    counts = Counter(entry["tag"] for entry in build_prompts())
    assert [counts[task] for task in TASKS] == [80, 99, 80, 94, 100, 100]


def test_results_are_read_as_they_are_written(tmp_path: Path) -> None:
    entry = build_prompts()[0]
    path = tmp_path / "results.jsonl"
    path.write_text(result_line("00000/samples/00000.png", entry, True, ""))
    assert read_results(path)[0]["correct"] is True
    assert json.loads(read_results(path)[0]["metadata"]) == entry


@pytest.mark.parametrize("text", ['{"tag": "colors"}\n', "no json\n", "[]\n"])
def test_broken_line_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"tag": "colors", "prompt": "x", "correct": false}\n' + text)
    with pytest.raises(ValueError, match="line 2, is no result of GenEval's scorer"):
        read_results(path)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no result"):
        read_results(tmp_path / "results.jsonl")
