from __future__ import annotations

from collections import Counter

import numpy as np

from star.metrics.minimal_pairs import KINDS, wrong_prompts
from star.metrics.shapes import load_suite


def words(prompt: str) -> list[str]:
    return ["a" if word == "an" else word for word in prompt.split()]


def test_each_prompt_is_wrong_in_one_fact() -> None:
    seen: Counter[str] = Counter()
    for record in load_suite("shapes"):
        true = words(record["prompt"])
        for kind, prompt in wrong_prompts(record, np.random.default_rng(record["index"])):
            seen[kind] += 1
            wrong = words(prompt)
            differ = sum(a != b for a, b in zip(true, wrong, strict=True))
            assert differ == (2 if kind in ("binding", "relation") else 1)
            assert (sorted(true) == sorted(wrong)) == (kind in ("binding", "relation"))
    assert set(seen) == set(KINDS)
    assert seen["shape"] == 264
    assert seen["relation"] == seen["binding"] == 100


def test_what_is_changed_is_what_the_kind_says() -> None:
    suite = {record["tag"]: record for record in load_suite("shapes")}
    of = {tag: dict(wrong_prompts(record, np.random.default_rng(0))) for tag, record in suite.items()}
    assert set(of["single_object"]) == set(of["two_object"]) == {"shape"}
    assert set(of["counting"]) == {"shape", "number"}
    assert set(of["colors"]) == {"shape", "color"}
    assert set(of["position"]) == {"shape", "relation"}
    assert set(of["color_attr"]) == {"shape", "color", "binding"}
    prompt = suite["position"]["prompt"].split()
    first, second = (i for i, word in enumerate(prompt) if word in {c["class"] for c in suite["position"]["include"]})
    prompt[first], prompt[second] = prompt[second], prompt[first]
    assert of["position"]["relation"] == " ".join(prompt)
