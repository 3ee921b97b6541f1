from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from star.callbacks.run_record import RunRecord


def test_the_configuration_lies_beside_and_inside_the_checkpoint(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(is_global_zero=True, world_size=2)
    record = RunRecord({"task": "generator", "seed": 3}, tmp_path)
    record.on_fit_start(trainer, trainer)
    held = json.loads((tmp_path / "config.json").read_text())
    assert held["config"] == {"task": "generator", "seed": 3}
    assert held["world_size"] == 2
    assert held["versions"]["torch"]
    checkpoint: dict[str, Any] = {}
    record.on_save_checkpoint(trainer, trainer, checkpoint)
    assert checkpoint["config"]["seed"] == 3
