"""docs/studies.md from what the studies have measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from star.demo.figures import save_figure
from star.studies.registry import Rows, Study
from star.utils.files import write_atomically

INTRODUCTION = """# Studies

The paper's comparisons in miniature: the demo's generator on coloured shapes, minutes of training instead of weeks.
`make studies` measures and writes this page. Every number of a miniature comes from such a run; what stands under
*The paper* is its own. A miniature can disagree because it is small, because it is short, or because a claim needs real
pictures; where it disagrees, the page says so. One run has noise: a few hundredths of a share mean little.
"""


def write_page(studies: Sequence[Study], out: Path, page: Path) -> None:
    """Write the page and its plots, which go into `images/studies` beside it."""
    sections = [section(study, out, page.parent / "images" / "studies") for study in studies]
    text = "\n".join([INTRODUCTION, _machine(), "", *sections])
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, lambda path: _write(path, text))


def section(study: Study, out: Path, images: Path) -> str:
    """What the paper says, what was measured, and whether it agrees."""
    lines = [f"## {study.title}", "", f"*The paper:* {study.paper}", ""]
    record, rows = study.record(out), study.rows(out)
    if record is None or not rows:
        return "\n".join([*lines, f"Not measured yet: `python -m star.studies only={study.name}`.", ""])
    agrees, said = study.judge(rows)
    lines += [f"*The miniature* {'agrees' if agrees else '**disagrees**'}: {said}.", "", table(study, rows), ""]
    image = images / f"{study.name}.png"
    draw(study, rows, image)
    lines += [f"![{study.title}](images/studies/{image.name})", ""]
    settings = {name: value for name, value in record.items() if name not in ("title", "rows", study.rows_in)}
    told = ", ".join(f"{name} {value}" for name, value in settings.items() if _plain(value))
    return "\n".join([*lines, f"<small>`star.studies.{study.module}`: {told}</small>" if told else "", ""])


def table(study: Study, rows: Rows) -> str:
    """A Markdown table."""
    columns = study.columns or tuple(rows[0])
    lines = [columns, ["---"] * len(columns), *([_shown(row[column]) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(study: Study, rows: Rows, path: Path) -> None:
    """Columns over another: lines over numbers, bars over names; more than two share a panel."""
    from matplotlib.figure import Figure

    along, drawn = study.plot
    values = [row[along] for row in rows]
    numeric = all(isinstance(value, int | float) for value in values)
    shared = len(drawn) > 2
    figure = Figure(figsize=(4.2 if shared else 3.6 * len(drawn), 2.8))
    panels = figure.subplots(1, 1 if shared else len(drawn), squeeze=False)[0]
    for i, name in enumerate(drawn):
        axis = panels[0 if shared else i]
        heights = [row[name] if isinstance(row[name], int | float) else float("nan") for row in rows]
        axis.plot(values, heights, "o-", label=name) if numeric else axis.bar([str(value) for value in values], heights)
        axis.set_xlabel(along, fontsize=8)
        axis.set_ylabel("share" if shared else name, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.tick_params(axis="x", rotation=0 if numeric else 30)
        if shared:
            axis.legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)


def _plain(value: Any) -> bool:
    """Whether it is a setting, and not something measured beside the rows."""
    return all(isinstance(part, str | int | float) for part in (value if isinstance(value, list) else [value]))


def _machine() -> str:
    date = datetime.now(UTC).date().isoformat()
    where = f"{os.cpu_count()} CPU cores" if not torch.cuda.is_available() else torch.cuda.get_device_name()
    return f"Page of {date}; {where}, PyTorch {torch.__version__}."


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
