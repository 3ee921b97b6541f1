"""DPG-Bench's scoring (Hu et al., 2024): answers to questions about pictures, some of which depend on others."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from star.metrics.json_lines import read_json_lines

MODES = ("official", "fixed")
_COLUMNS = ("item_id", "proposition_id", "dependency", "category_broad", "question_natural_language")


@dataclass
class Question:
    """One question about the pictures of a prompt.

    Attributes:
        number: its id within the prompt.
        parents: questions that have to be answered yes for this one to make sense.
        category: what it asks about.
        text: the question.

    """

    number: int
    parents: tuple[int, ...] = ()
    category: str = ""
    text: str = ""


@dataclass
class Prompt:
    """A prompt and its questions, in the file's order.

    Attributes:
        item: its id.
        text: the prompt.
        questions: about its pictures.

    """

    item: str
    text: str = ""
    questions: list[Question] = field(default_factory=list)


def read_questions(path: Path, *, mode: str = "official") -> dict[str, Prompt]:
    """The questions of `dpg_bench.csv`, by item.

    The official scorer skips the first row of the table, so the first prompt lacks a question; `fixed` reads all rows.

    Raises:
        ValueError: when columns are missing, or for an unknown mode.

    """
    check_mode(mode)
    prompts: dict[str, Prompt] = {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        lacking = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if lacking:
            raise ValueError(f"{path} is not DPG-Bench's table: it has no column {', '.join(lacking)}")
        for number, row in enumerate(reader):
            if mode == "official" and number == 0:
                continue
            prompt = prompts.setdefault(row["item_id"], Prompt(row["item_id"], row.get("text", "")))
            parents = tuple(int(part) for part in row["dependency"].split(",") if part.strip())
            question = Question(
                int(row["proposition_id"]), parents, row["category_broad"], row["question_natural_language"]
            )
            prompt.questions.append(question)
    return prompts


def score_picture(questions: Sequence[Question], answers: Mapping[int, float]) -> float:
    """Mean over the questions, each zeroed when a parent is (already zeroed or) answered no; in the file's order."""
    values = dict(answers)
    for question in questions:
        if any(parent and values[parent] == 0 for parent in question.parents):
            values[question.number] = 0.0
    return fmean(values[question.number] for question in questions)


def score(
    prompts: Mapping[str, Prompt], answers: Mapping[str, Sequence[Mapping[int, float]]], *, mode: str = "official"
) -> dict[str, Any]:
    """The benchmark's numbers, in percent.

    Args:
        prompts: the questions by item.
        answers: by item, of each of its pictures question -> 1.0 (yes) or 0.0.
        mode: `official` takes for categories the last picture's answers alone, before dependencies; `fixed` those of
            all pictures, after.

    Returns:
        `value`, `categories`, `prompts` (each one's score), and `dropped`: items without all their
        answers, those included that others depend on.

    Raises:
        ValueError: when no prompt is answered.

    """
    check_mode(mode)
    scores: dict[str, float] = {}
    categories: defaultdict[str, list[float]] = defaultdict(list)
    dropped = []
    for item, prompt in prompts.items():
        pictures = answers.get(item, ())
        # nobody asks the question that the official scorer skips; it drops a prompt in which others depend on that
        needed = {n for question in prompt.questions for n in (question.number, *question.parents) if n}
        if not pictures or any(not needed <= each.keys() for each in pictures):
            dropped.append(item)
            continue
        scores[item] = fmean(score_picture(prompt.questions, each) for each in pictures)
        for each in pictures[-1:] if mode == "official" else pictures:
            for question in prompt.questions:
                held = all(each.get(parent, 1.0) for parent in question.parents if parent)
                categories[question.category].append(each[question.number] if mode == "official" or held else 0.0)
    if not scores:
        raise ValueError("no prompt of DPG-Bench has all its answers")
    return {
        "value": 100 * fmean(scores.values()),
        "categories": {name: 100 * fmean(values) for name, values in sorted(categories.items())},
        "prompts": {item: 100 * value for item, value in scores.items()},
        "dropped": dropped,
    }


def read_answers(path: Path) -> dict[str, list[dict[int, float]]]:
    """Answers of JSON lines (item_id, image_index, proposition_id, answer: yes or no), by item and picture.

    Raises:
        ValueError: for a line that isn't such a record; names it.

    """
    found: defaultdict[str, defaultdict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    what = "answer (item_id, image_index, proposition_id, answer)"
    for item, image, question, answer in read_json_lines(path, _answer, what=what):
        found[item][image][question] = answer
    return {item: [pictures[i] for i in sorted(pictures)] for item, pictures in found.items()}


def _answer(row: Mapping[str, Any]) -> tuple[str, int, int, float]:
    yes = str(row["answer"]).strip().lower() == "yes"
    return str(row["item_id"]), int(row["image_index"]), int(row["proposition_id"]), float(yes)


def check_mode(mode: str) -> None:
    """Raise a ValueError for an unknown mode."""
    if mode not in MODES:
        raise ValueError(f"DPG-Bench's mode is {' or '.join(MODES)}, got {mode!r}")
