"""The plan as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from star.utils.devices import GIB

_NOTES = {
    "weights": "of what is trained",
    "narrow_copies": "16-bit weights that autocast makes",
    "gradients": "",
    "optimizer": "moments",
    "averages": "EMA",
    "text_encoder": "frozen",
    "tokenizer": "frozen",
    "activations": "of a batch of {batch}",
    "reserve": "CUDA, fragmentation",
}


def show(plan: Mapping[str, Any], console: Console | None = None) -> None:
    """Print every number of a plan."""
    console = console or Console()
    head = (f"stage {plan['stage']}", f"{plan['devices']} x {plan['gpu']}", plan["strategy"], plan["precision"])
    console.print(", ".join(head), style="bold")
    for title, rows in (
        ("models", _models(plan)),
        ("operations per picture", _operations(plan)),
        ("memory per device", _memory(plan)),
        ("training", _training(plan)),
        ("drawing one picture", _sampling(plan)),
    ):
        table = Table(title=title, title_justify="left", show_header=False, min_width=60)
        table.add_column(ratio=3)
        table.add_column(justify="right", ratio=2)
        table.add_column(ratio=3, style="dim")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in advice(plan):
        console.print(line)


def advice(plan: Mapping[str, Any]) -> list[str]:
    """What to change when it doesn't fit, and what isn't in the numbers."""
    lines = []
    batch = plan["batch"]
    if not batch["fits"]:
        lines.append(
            f"a batch of {batch['per_device']} does not fit"
            + (f"; batch_size={batch['largest']} does" if batch["largest"] else ", nor does a single picture")
            + f". What saves memory: {', '.join(_savings(plan))}; "
            "trainer.accumulate_grad_batches keeps the global batch"
        )
    if plan["parameters"]["text_encoder"] is None:
        lines.append("the text encoder isn't counted, because its files aren't here")
    return lines


def _savings(plan: Mapping[str, Any]) -> list[str]:
    """Settings that need less memory, but for those that were chosen; the largest savings first."""
    sharded = plan["strategy"].startswith("fsdp")  # which goes without 8-bit AdamW
    moments = plan["memory"]["optimizer"] / plan["parameters"]["trained"]  # bytes; two in fp32 take 8
    there = {
        "activation_checkpointing=full": plan["flops"]["recomputation"] > 0,
        "train_tokens=local_window": plan["tokens"]["trained"] < plan["tokens"]["all"],
        "trainer=fsdp": plan["devices"] == 1 or sharded,
        "optim=adamw8bit": sharded or moments < 4,
        "data=cached": not plan["flops"]["tokenizer"],
    }
    return [name for name, chosen in there.items() if not chosen] + ["a smaller model=, or more devices="]


def number(value: float) -> str:
    """A count with three digits: `1.68 B`."""
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _models(plan: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = [(name, "?" if value is None else number(value), "parameters") for name, value in plan["parameters"].items()]
    tokens = plan["tokens"]
    share = "" if tokens["trained"] == tokens["all"] else f"of {tokens['all']}"
    return [*rows, ("trained tokens", str(tokens["trained"]), share)]


def _operations(plan: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    flops = plan["flops"]
    names = ("forward", "backward", "recomputation", "tokenizer", "text_encoder", "training_step")
    return [(name, _flops(flops[name]), "FLOP") for name in names if flops[name]]


def _flops(value: float) -> str:
    return number(value).replace(" B", " G")


def _memory(plan: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    memory = plan["memory"]
    rows = [
        (name, _gib(memory[name]), note.format(batch=plan["batch"]["per_device"]))
        for name, note in _NOTES.items()
        if memory[name]
    ]
    rows.append(("total", _gib(memory["total"]), f"of {_gib(memory['available'])}"))
    return [*rows, ("each picture more", _gib(memory["per_image"]), "")]


def _gib(value: float) -> str:
    return f"{value / GIB:.2f} GiB"


def _training(plan: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    batch, speed, cost = plan["batch"], plan["speed"], plan["cost"]
    return [
        ("batch per device", str(batch["per_device"]), f"{batch['together']} in a step"),
        ("largest batch per device", str(batch["largest"]), ""),
        (
            "images per second",
            f"{speed['images_per_second']:.3g}",
            f"at {speed['mfu']:.0%} of {speed['peak_tflops']:.4g} TFLOP/s",
        ),
        ("seconds per step", f"{speed['step_seconds']:.3g}", ""),
        ("images", number(cost["images"]), f"{number(cost['steps'])} steps"),
        ("GPU-hours", f"{cost['gpu_hours']:,.0f}", f"{cost['hours']:,.1f} hours"),
    ]


def _sampling(plan: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    sampling, flops = plan["sampling"], plan["flops"]
    return [
        ("keys and values", _gib(sampling["kv_cache"]), "16 bits, with guidance"),
        ("keys and values of texts", _gib(sampling["text_kv_cache"]), ""),
        ("weights of the generator", _gib(sampling["weights"]), "16 bits"),
        ("generator", _flops(flops["sampling"]), "FLOP"),
        ("decoder", _flops(flops["decoding"]), "FLOP"),
    ]
