from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hydra.types import RunMode

from star.utils.launch import prepare_launch

SUBMITIT = {
    "SUBMITIT_EXECUTOR": "local",
    "SUBMITIT_LOCAL_NTASKS": "2",
    "SUBMITIT_LOCAL_JOB_ID": "31337",
    "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_LOCALID": "1",
}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
SLURM = {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "star"}


def hydra_config(*overrides: str, sweep: bool = False) -> Any:
    mode = RunMode.MULTIRUN if sweep else RunMode.RUN
    return SimpleNamespace(mode=mode, overrides=SimpleNamespace(task=list(overrides)))


TRAINER = SimpleNamespace(devices=2)


def test_tasks_of_a_local_submitit_job_are_ranks() -> None:
    environments = [SUBMITIT | {"SUBMITIT_LOCAL_GLOBALID": f"{i}", "SUBMITIT_LOCAL_LOCALID": f"{i}"} for i in (0, 1)]
    for environment in environments:
        prepare_launch(hydra_config(sweep=True), TRAINER, environment)
    assert [environment["RANK"] for environment in environments] == ["0", "1"]
    assert [environment["LOCAL_RANK"] for environment in environments] == ["0", "1"]
    assert {environment["WORLD_SIZE"] for environment in environments} == {"2"}
    assert len({(each["MASTER_ADDR"], each["MASTER_PORT"]) for each in environments}) == 1
    assert 1024 < int(environments[0]["MASTER_PORT"]) < 2**16


@pytest.mark.parametrize("environment", [TORCHRUN, SLURM])
def test_ranks_from_outside_need_one_run_directory(environment: dict[str, str]) -> None:
    prepare_launch(hydra_config("paths.run_dir=here"), TRAINER, dict(environment))
    with pytest.raises(ValueError, match=r"paths\.run_dir=DIR"):
        prepare_launch(hydra_config(), TRAINER, dict(environment))


def test_one_process_or_processes_of_lightning_s_own_need_nothing() -> None:
    for environment in ({}, {"SLURM_NTASKS": "1"}, SLURM | {"SLURM_JOB_NAME": "bash"}, {"LOCAL_RANK": "1"}):
        before = dict(environment)
        prepare_launch(hydra_config(), TRAINER, environment)
        assert environment == before


def test_a_sweep_starts_no_ranks_of_its_own() -> None:
    prepare_launch(hydra_config(sweep=True), SimpleNamespace(devices=1), {})
    with pytest.raises(ValueError, match=r"hydra\.launcher\.tasks_per_node=2"):
        prepare_launch(hydra_config(sweep=True), TRAINER, {})
