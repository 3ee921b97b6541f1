"""GenEval's rules: from the objects found in an image to right or wrong (Ghosh et al., 2023)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """An object found in an image.

    Attributes:
        label: what it is: the class name of the prompts.
        box: (x0, y0, x1, y1) in pixels, y down; x1 and y1 lie behind the last pixel.
        score: confidence in [0, 1].
        color: its colour's name; None when nobody looked.

    """

    label: str
    box: Box
    score: float
    color: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether an image shows what its prompt asks for.

    Attributes:
        correct: whether every clause holds.
        reason: a line for every clause that fails, empty when none does.
        detections: what was found in the image, mentioned or not.

    """

    correct: bool
    reason: str = ""
    detections: tuple[Detection, ...] = ()


@dataclass(frozen=True)
class GenEvalRules:
    """The benchmark's constants; the defaults are the published protocol.

    Attributes:
        min_score: a detection must score more than this.
        min_counting_score: the same for prompts that count, where a doubtful detection costs most.
        max_objects: the best so many detections of a class are looked at.
        overlap_margin: a box's share, per axis, by which two centres may differ without one being beside the other.
        min_direction: least share of the distance that must lie along the axis of a relation.

    Raises:
        ValueError: for a constant that is out of its range.

    """

    min_score: float = 0.3
    min_counting_score: float = 0.9
    max_objects: int = 16
    overlap_margin: float = 0.1
    min_direction: float = 0.5

    def __post_init__(self) -> None:
        """Check the ranges."""
        shares = (self.min_score, self.min_counting_score, self.overlap_margin, self.min_direction)
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError(f"scores, margin and direction are shares in [0, 1], got {shares}")
        if self.max_objects < 1:
            raise ValueError(f"at least one object a class must be looked at, got max_objects={self.max_objects}")

    def relations(self, box: Box, target: Box) -> frozenset[str]:
        """Where `box` stands as seen from `target`: none, one or two of left of, right of, above, below."""
        offset = [(box[i] + box[i + 2] - target[i] - target[i + 2]) / 2 for i in (0, 1)]
        extent = [box[i + 2] - box[i] + target[i + 2] - target[i] for i in (0, 1)]
        beyond = [
            math.copysign(max(abs(o) - self.overlap_margin * e, 0.0), o) for o, e in zip(offset, extent, strict=True)
        ]
        if max(map(abs, beyond)) < 1e-3:
            return frozenset()
        # The direction is taken relative to the distance of the centres before the margin is subtracted.
        dx, dy = (part / math.hypot(*offset) for part in beyond)
        holds = {
            "left of": dx < -self.min_direction,
            "right of": dx > self.min_direction,
            "above": dy < -self.min_direction,
            "below": dy > self.min_direction,
        }
        return frozenset(name for name, true in holds.items() if true)

    def judge(self, metadata: Mapping[str, Any], detections: Iterable[Detection]) -> Verdict:
        """Score one image.

        Args:
            metadata: the prompt's `tag`, `include` (clauses of `class`, `count` and perhaps `color` and
                `position: [relation, index of another clause]`) and perhaps `exclude`.
            detections: everything found, in any order; colours are needed for the classes of clauses with a colour.

        Raises:
            ValueError: for metadata without a tag or clauses, or a colour clause about objects without colours.

        """
        if not metadata.get("tag") or not metadata.get("include"):
            raise ValueError(f"GenEval metadata needs `tag` and `include`, got the keys {sorted(metadata)}")
        detections = tuple(detections)
        found = self._by_class(metadata["tag"], detections)
        complaints: list[str] = []
        matched: list[list[Detection] | None] = []
        for clause in metadata["include"]:
            objects = found[clause["class"]][: clause["count"]]
            complaint = _count_complaint(clause, objects) or self._position_complaint(clause, objects, matched)
            complaints += [complaint] if complaint else []
            matched.append(None if complaint else objects)
        for clause in metadata.get("exclude", ()):
            if len(found[clause["class"]]) >= clause["count"]:
                complaints.append(
                    f"{len(found[clause['class']])} {clause['class']}, fewer than {clause['count']} asked"
                )
        return Verdict(not complaints, "\n".join(complaints), detections)

    def _by_class(self, tag: str, detections: Iterable[Detection]) -> defaultdict[str, list[Detection]]:
        least = self.min_counting_score if tag == "counting" else self.min_score
        found: defaultdict[str, list[Detection]] = defaultdict(list)
        for detection in sorted(detections, key=lambda detection: -detection.score):
            if detection.score > least and len(found[detection.label]) < self.max_objects:
                found[detection.label].append(detection)
        return found

    def _position_complaint(
        self, clause: Mapping[str, Any], objects: Sequence[Detection], matched: Sequence[Sequence[Detection] | None]
    ) -> str:
        if "position" not in clause:
            return ""
        relation, index = clause["position"]
        targets = matched[index]
        if targets is None:
            return f"nothing there that a {clause['class']} could be {relation}"
        for one in objects:
            for target in targets:
                holds = self.relations(one.box, target.box)
                if relation not in holds:
                    seen = " and ".join(sorted(holds)) or "neither beside nor above"
                    return f"{clause['class']} should be {relation} the {target.label} but is {seen}"
        return ""


def _count_complaint(clause: Mapping[str, Any], objects: Sequence[Detection]) -> str:
    """What is wrong with the number or the colours of a clause's objects; empty when nothing is."""
    name, count = clause["class"], clause["count"]
    if len(objects) < count:
        return f"{len(objects)} {name} of {count} asked"
    if "color" not in clause:
        return ""
    colors = [one.color for one in objects]
    if None in colors:
        raise ValueError(f"the prompt asks for a {clause['color']} {name}, but the detections carry no colour")
    right = colors.count(clause["color"])
    return (
        ""
        if right >= count
        else f"{right} {clause['color']} {name} of {count} asked, seen: {', '.join(map(str, colors))}"
    )


def summarize(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Scores of a benchmark run.

    Args:
        rows: one a scored image, each with `tag`, `prompt` and `correct`.

    Returns:
        Shares in [0, 1]: `overall` (the unweighted mean of the tags' scores), `images` (of all images that are
        right), `prompts` (of prompts with any right image) and `tag/<name>` for every tag.

    Raises:
        ValueError: when there are no rows.

    """
    by_tag: defaultdict[str, list[bool]] = defaultdict(list)
    by_prompt: defaultdict[tuple[str, str], list[bool]] = defaultdict(list)
    for row in rows:
        by_tag[row["tag"]].append(bool(row["correct"]))
        by_prompt[row["tag"], row["prompt"]].append(bool(row["correct"]))
    if not by_tag:
        raise ValueError("there is no scored image to summarise")
    tags = {f"tag/{tag}": sum(correct) / len(correct) for tag, correct in by_tag.items()}
    images = [correct for rows_of_tag in by_tag.values() for correct in rows_of_tag]
    return {
        "overall": sum(tags.values()) / len(tags),
        "images": sum(images) / len(images),
        "prompts": sum(map(any, by_prompt.values())) / len(by_prompt),
        **tags,
    }
