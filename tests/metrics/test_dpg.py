from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from star.metrics.dpg import Prompt, Question, read_answers, read_questions, score, score_picture

CASES = json.loads((Path(__file__).parents[1] / "golden" / "eval" / "dpg_rules.json").read_text())


def questions(case: dict[str, Any]) -> list[Question]:
    return [Question(int(k), tuple(case["dependency"].get(str(k), ())), f"category {k}") for k in case["tuple"]]


def answers(case: dict[str, Any]) -> list[dict[int, float]]:
    return [
        {int(k): float(a == "yes") for k, a in zip(case["tuple"], picture, strict=True)} for picture in case["answers"]
    ]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_scores_are_the_official_scorers(case: dict[str, Any]) -> None:
    asked, given = questions(case), answers(case)
    found = sum(score_picture(asked, each) for each in given) / len(given)
    assert found == pytest.approx(case["score"], abs=1e-12)
    official = score({"x": Prompt("x", "", asked)}, {"x": given})
    assert official["value"] == pytest.approx(100 * case["score"])
    last = dict(zip((f"category {k}" for k in case["tuple"]), case["category_scores_last_image"].values(), strict=True))
    assert official["categories"] == pytest.approx({name: 100 * value for name, value in last.items()})


def test_fixed_mode_uses_all_pictures_after_dependencies() -> None:
    asked = [Question(1, (), "entity"), Question(2, (1,), "attribute")]
    given = [{1: 0.0, 2: 1.0}, {1: 1.0, 2: 1.0}]
    prompts = {"a": Prompt("a", "", asked), "b": Prompt("b", "", asked)}
    official, fixed = (score(prompts, {"a": given}, mode=mode) for mode in ("official", "fixed"))
    assert official["value"] == fixed["value"] == 50.0
    assert official["categories"] == {"attribute": 100.0, "entity": 100.0}
    assert fixed["categories"] == {"attribute": 50.0, "entity": 50.0}
    assert fixed["dropped"] == ["b"]


def test_table_and_answers_are_read(tmp_path: Path) -> None:
    table = tmp_path / "dpg_bench.csv"
    table.write_text(
        "item_id,text,proposition_id,dependency,category_broad,question_natural_language\n"
        'a,"A cat, black",1,0,entity,Is there a cat?\na,,2,1,attribute,Is it black?\n'
    )
    assert [q.number for q in read_questions(table)["a"].questions] == [2]  # the official scorer loses the first row
    assert read_questions(table, mode="fixed")["a"].questions[1] == Question(2, (1,), "attribute", "Is it black?")
    lines = tmp_path / "answers.jsonl"
    row = {"item_id": "a", "image_index": 1, "proposition_id": 1, "answer": "Yes"}
    lines.write_text("".join(json.dumps(row | change) + "\n" for change in ({}, {"image_index": 0, "answer": "no"})))
    assert read_answers(lines) == {"a": [{1: 0.0}, {1: 1.0}]}


def test_wrong_files_and_modes(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has no column item_id"):
        read_questions(tmp_path / "table.csv")
    (tmp_path / "answers.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="line 1, is no answer"):
        read_answers(tmp_path / "answers.jsonl")
    with pytest.raises(ValueError, match="official or fixed, got 'own'"):
        score({}, {}, mode="own")
    with pytest.raises(ValueError, match="no prompt of DPG-Bench has all its answers"):
        score({"a": Prompt("a")}, {})
