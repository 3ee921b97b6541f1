"""A run's figures as a table, and as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from star.bench.measure import ratio
from star.bench.work import BLOCKS
from star.utils.files import write_atomically

Record = Mapping[str, Any]


def read(path: Path) -> Record:
    """An earlier run's figures.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it has no `cpu_seconds.total` or `wall_seconds.total`.

    """
    if not path.is_file():
        raise FileNotFoundError(f"no earlier run at {path}")
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        for name in ("cpu_seconds", "wall_seconds"):
            float(record[name]["total"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is no run of star.bench: it has no cpu_seconds.total and wall_seconds.total"
        ) from error
    return record


def compared(record: dict[str, Any], path: Path | None) -> dict[str, Any]:
    """The record with its ratios to an earlier run, if one is given."""
    return record if path is None else {**record, "against": {"file": str(path), "ratio": ratio(record, read(path))}}


def as_json(record: Record) -> str:
    """One JSON object."""
    return json.dumps(record, indent=2) + "\n"


def write(record: Record, path: Path) -> None:
    """The same into a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda partial: _write(partial, as_json(record)))


def as_text(record: Record) -> str:
    """Tables for people."""
    lines = [f"{record['kind']}: {_title(record)}"]
    lines += ["  " + ", ".join(f"{name} {value}" for name, value in record["machine"].items()), ""]
    lines += _table(record)
    if "versus" in record:
        lines += ["", f"versus: {_title(record['versus'])}", "", *_table(record["versus"])]
        lines += ["", "first / versus", *_ratios(record["ratio"])]
    if "against" in record:
        lines += ["", f"this / {record['against']['file']}", *_ratios(record["against"]["ratio"])]
    return "\n".join(lines) + "\n"


def _title(record: Record) -> str:
    settings = record["settings"]
    words = [f"batch {settings['batch']}", settings["dtype"], *settings["overrides"]]
    if settings["implementation"] != "star":
        words.insert(0, settings["implementation"])
    return f"{', '.join(words)}; median of {record['repeats']}"


def _table(record: Record) -> list[str]:
    total = record["cpu_seconds"]["total"]
    lines = [f"  {'':18}{'CPU s':>9}{'least':>9}{'most':>9}{'share':>8}{'wall s':>9}"]
    for part, cpu in record["cpu_seconds"].items():
        low, high = record["spread"]["cpu_seconds"][part]
        name = f"  {part}" if part in BLOCKS[1:] else part
        wall = record["wall_seconds"][part]
        lines.append(f"  {name:18}{cpu:9.3f}{low:9.3f}{high:9.3f}{cpu / total if total else 0:8.1%}{wall:9.3f}")
    lines.append(
        f"  peak memory {record['peak_memory_gib']:.3f} GiB, "
        f"{record['peak_above_before_gib']:.3f} above the {record['memory_before_gib']:.3f} before"
    )
    if "gflop" in record:
        lines.append(f"  {record['gflop']:.0f} GFLOP of products, {record['gflops_per_second']:.0f} GFLOP/s")
    if "matmul" in record:
        lines += _matmul(record["matmul"])
    return lines


def _matmul(found: Record) -> list[str]:
    lines = [
        f"  large products alone reach {found['large_gflops']:.0f} GFLOP/s;",
        "  by scale, what the blocks reach and what their products reach alone:",
    ]
    for scale in found["scales"]:
        height, width = scale["size"]
        lines.append(
            f"    {f'{height}x{width}':8}{scale['gflops']:8.0f}{scale['matmul_gflops']:8.0f}{scale['share']:8.0%}"
        )
    return lines


def _ratios(found: Record) -> list[str]:
    lines = []
    for part, value in found["cpu_seconds"].items():
        wall = found["wall_seconds"].get(part)
        lines.append(f"  {part:18}{value:9.3f} CPU" + ("" if wall is None else f"{wall:9.3f} wall"))
    return lines + [f"  {name:26}{value:9.3f}" for name, value in found.items() if isinstance(value, float)]


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
