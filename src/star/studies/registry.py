"""Which studies there are, what the paper says of each, and whether the miniature agrees."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]
Verdict = tuple[bool, str]


@dataclass(frozen=True)
class Study:
    """One comparison.

    Attributes:
        name: of its files, and of `only=`.
        module: whose command it is, `star.studies.MODULE`.
        title: of its section.
        paper: what the paper says, in our words.
        words: arguments; `{demo}` and `{out}` stand for folders.
        smoke: arguments that make it short, to see whether it runs.
        judge: from rows to whether they agree with the paper, and a sentence with their numbers.
        minutes: about how long it takes without bf16, on one core (where `alone`, on two); the longest begins first.
        plot: the column along the axis, and those that are drawn over it.
        columns: what the table shows; None shows all.
        file: where its JSON is, in `out`.
        rows_in: the key that has the rows.
        alone: whether it takes the time of things, so that nothing may run beside it.

    """

    name: str
    module: str
    title: str
    paper: str
    words: tuple[str, ...]
    smoke: tuple[str, ...]
    judge: Callable[[Rows], Verdict]
    minutes: int
    plot: tuple[str, tuple[str, ...]]
    columns: tuple[str, ...] | None = None
    file: str = ""
    rows_in: str = "rows"
    alone: bool = False

    def path(self, out: Path) -> Path:
        """Its JSON."""
        return out / (self.file or f"{self.name}.json")

    def command(self, *, demo: Path, out: Path, smoke: bool, more: Sequence[str] = ()) -> list[str]:
        """Arguments for Python."""
        words = [*self.words, *(self.smoke if smoke else ()), *more]
        return ["-m", f"star.studies.{self.module}", *(word.format(demo=demo, out=out) for word in words)]

    def record(self, out: Path) -> dict[str, Any] | None:
        """What it measured; None as long as it hasn't run."""
        if not self.path(out).is_file():
            return None
        record: dict[str, Any] = json.loads(self.path(out).read_text())
        return record

    def rows(self, out: Path) -> Rows:
        """Its rows; none as long as it hasn't run."""
        rows: Rows = (self.record(out) or {}).get(self.rows_in, [])
        return rows


def _by(rows: Rows, column: str) -> dict[Any, Mapping[str, Any]]:
    return {row[column]: row for row in rows}


def judge_positions(rows: Rows) -> Verdict:
    """Normalised rotary positions end lower than learned ones."""
    kinds = _by(rows, "position")
    ours, learned = kinds["normalized"], kinds["absolute"]
    said = f"loss {ours['loss']:.3f} with normalised RoPE, {learned['loss']:.3f} with learned positions; "
    said += f"accuracy {ours['accuracy']:.3f} and {learned['accuracy']:.3f}"
    return ours["loss"] < learned["loss"] and ours["accuracy"] > learned["accuracy"], said


def judge_progressive(rows: Rows) -> Verdict:
    """With normalised positions the higher resolution takes a smaller share of the steps."""
    kinds = _by(rows, "position")
    ours, learned = kinds["normalized"]["share of steps"], kinds["absolute"]["share of steps"]
    said = f"share of the steps: {_shown(ours)} with normalised RoPE, {_shown(learned)} with learned positions"
    return ours != "-" and (learned == "-" or ours < learned), said


def judge_sizes(rows: Rows) -> Verdict:
    """Deeper is better, and so is larger."""
    small, deep, large = rows[0], rows[-2], rows[-1]
    said = f"right: {small['right']:.3f} at depth {small['depth']}, {deep['right']:.3f} at depth {deep['depth']}, "
    said += f"{large['right']:.3f} at {large['pixels']} pixels"
    return small["right"] < deep["right"] < large["right"], said


def judge_topk(rows: Rows) -> Verdict:
    """A small k keeps to the caption, all codes come nearer to real pictures."""
    few = max(rows[:-1], key=lambda row: row["alignment"])
    every = rows[-1]
    said = f"alignment {few['alignment']:.3f} at k = {few['top-k']}, {every['alignment']:.3f} with all codes; "
    said += f"Frechet distance {few['fid']:.2f} and {every['fid']:.2f}, CMMD {few['cmmd']:.3f} and {every['cmmd']:.3f}"
    return few["alignment"] > every["alignment"] and every["fid"] < few["fid"], said


def judge_samplers(rows: Rows) -> Verdict:
    """Revealing in steps beats drawing at once, and smoothing has the worst distance."""
    named = _by(rows, "sampler")
    ours, plain, smooth = (named[name]["fid"] for name in ("ours small", "topk small", "smooth"))
    said = f"Frechet distance {ours:.2f} for ours and {plain:.2f} for top-k with the same k, {smooth:.2f} for smooth"
    return ours < plain < smooth, said


def judge_windows(rows: Rows) -> Verdict:
    """A window makes a step half as fast again."""
    window = _by(rows, "train_tokens")["local_window"]
    faster, smaller = window["times faster"], window["times less memory"]
    said = f"a step is {faster:.2f} times faster and takes {smaller:.2f} times less memory"
    return faster >= 1.5, said


def judge_window_training(rows: Rows) -> Verdict:
    """Windows, then all tokens: as right as all tokens throughout, up to 0.05, in less time."""
    kinds = _by(rows, "training")
    full, ours = kinds["all"], kinds["window, then all"]
    said = f"right: {ours['right']:.3f} after windows and then all tokens, {full['right']:.3f} after all tokens; "
    said += f"{ours['share of the time']:.2f} of the time"
    if short := kinds.get("all, shorter"):
        said += f"; {short['right']:.3f} after all tokens for {short['share of the time']:.2f} of it"
    else:
        said += "; how far all tokens alone get in that time wasn't asked (steps_short=)"
    return ours["right"] >= full["right"] - 0.05 and ours["share of the time"] < 1, said


def judge_locality(rows: Rows) -> Verdict:
    """Attention prefers its own place in all blocks but the last, which looks furthest."""
    gains = [row["near"] - row["near, uniform"] for row in rows]
    said = "attention near the token's own place, over uniform: " + ", ".join(f"{gain:+.3f}" for gain in gains)
    return all(gain > 0 for gain in gains[:-1]) and gains[-1] == min(gains), said


def _shown(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


_BATCH = "length.generator.batch=16"  # half of the demo's: all studies in 90 minutes on two cores, without bf16 too
_DEMO = ("tokenizer={demo}/tokenizer.ckpt", "data={demo}/data", "runs={out}/runs")
_MODEL = (*_DEMO, _BATCH)
STUDIES = (
    Study(
        name="positions",
        module="positions",
        title="Kinds of positions (Fig. 8, ablation)",
        paper="Normalised RoPE converges faster than learned absolute positions and is about 10 % more accurate "
        "throughout the training.",
        words=(*_MODEL, "steps=300", "out={out}/positions.json"),
        smoke=("steps=4", "every=2", "kinds=normalized,absolute"),
        judge=judge_positions,
        minutes=22,
        plot=("position", ("loss", "accuracy")),
    ),
    Study(
        name="progressive",
        module="progressive",
        title="A higher resolution from a lower one (Fig. 8)",
        paper="With normalised RoPE a low-resolution model adapts to a higher resolution at lower cost.",
        words=(
            "tokenizer={demo}/tokenizer.ckpt",
            "steps=200",
            "steps_after=125",
            "steps_before=300",
            "every=25",
            "images=4096",
            "length.generator.batch=8",  # of four times the tokens
            "out={out}/progressive",
        ),
        smoke=("steps=4", "steps_after=4", "steps_before=2", "every=2", "images=64"),
        judge=judge_progressive,
        minutes=39,
        plot=("position", ("share of steps", "last loss from 64")),
        file="progressive/progressive.json",
    ),
    Study(
        name="sizes",
        module="sizes",
        title="Depth and resolution (Table 2)",
        paper="From depth 16 to 30 and from 256 to 1024 pixels, both fidelity and agreement with the caption improve.",
        words=(*_MODEL, "steps_large=120", "out={out}/sizes.json"),
        smoke=("steps=4", "steps_large=2", "images=64", "depths=1,2"),
        judge=judge_sizes,
        minutes=26,
        plot=("seconds a picture", ("right",)),
    ),
    Study(
        name="topk",
        module="topk",
        title="Top-k's trade-off (Fig. 6)",
        paper="A lower top-k agrees better with the text and has clearer details; a larger one gives more realistic "
        "images, with details that may be chaotic.",
        words=("ckpt={demo}/star.ckpt", "folder={out}/topk", "out={out}/topk.json"),
        smoke=("values=1,all", "images=1"),
        judge=judge_topk,
        minutes=5,
        plot=("top-k", ("alignment", "fid")),
    ),
    Study(
        name="samplers",
        module="samplers",
        title="Samplers (appendix, Table 1)",
        paper="Causal-driven sampling has a better FID than top-k with the same k; smoothing has the worst.",
        words=("ckpt={demo}/star.ckpt", "refiner={demo}/refiner.ckpt", "out={out}/samplers", "parts=table", "seeds=0"),
        smoke=("images=1",),
        judge=judge_samplers,
        minutes=15,
        plot=("sampler", ("alignment", "fid")),
        columns=("sampler", "alignment", "fid", "cmmd", "seconds"),
        file="samplers/samplers.json",
        rows_in="table",
        alone=True,
    ),
    Study(
        name="windows",
        module="windows",
        title="Local windows (section 4.4)",
        paper="Training on local windows of the late scales is 1.5 times faster, with batches two to three times as "
        "large.",
        words=("variants=all,random_tail,local_window", "out={out}/windows.json"),
        smoke=("stage=64", "repeats=1"),
        judge=judge_windows,
        minutes=1,
        plot=("train_tokens", ("times faster", "times less memory")),
        alone=True,
    ),
    Study(
        name="window_training",
        module="window_training",
        title="Training on windows first (appendix B.2)",
        paper="A generator trained on local windows needs to be tuned on whole maps, and then is as good as one that "
        "was trained on them throughout.",
        words=(*_DEMO, "full={demo}/generator", "out={out}/window_training.json"),
        smoke=("steps_window=4", "steps_after=4", "repeats=1"),
        judge=judge_window_training,
        minutes=43,
        plot=("training", ("right", "share of the time")),
        columns=("training", "seconds", "right", "interval", "share of the time"),
    ),
    Study(
        name="locality",
        module="locality",
        title="Locality of attention (appendix C)",
        paper="A token attends mostly to its own scale and to aligned places of coarser ones; the final layers look at "
        "everything.",
        words=("ckpt={demo}/star.ckpt", "out={out}/locality.json"),
        smoke=("images=1", "every=20"),
        judge=judge_locality,
        minutes=1,
        plot=("block", ("near", "near, uniform", "own scale", "own scale, uniform")),
    ),
)
