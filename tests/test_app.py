from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from star.page.limits import Limits
from star.utils.cli import compose, plain

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_CONF", str(ROOT / "conf"))


def test_the_page_is_for_this_machine_alone_unless_told_otherwise() -> None:
    config = plain(compose("app", ["ckpt=x"]))
    assert config["address"] == "127.0.0.1"
    Limits(**config["limits"])


def test_everything_that_says_what_draws_is_said_as_for_sample() -> None:
    app, sample = plain(compose("app")), plain(compose("sample"))
    for name in sample.keys() - {"out"}:
        assert app[name] == sample[name], name


def test_a_root_script_may_compose_within_its_own_configuration() -> None:
    with hydra.initialize_config_dir(version_base=None, config_dir=str(ROOT / "conf")):
        assert compose("sample", ["sampling=greedy"]).sampling.sampler._target_.endswith("Greedy")
        assert GlobalHydra.instance().is_initialized()
        assert hydra.compose("sample", ["seed=3"]).seed == 3
    assert not GlobalHydra.instance().is_initialized()


def test_what_is_missing_is_said_in_one_message(tmp_path: Path) -> None:
    words = [sys.executable, "app.py", f"ckpt={tmp_path / 'no.ckpt'}", f"out={tmp_path / 'log'}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "no.ckpt" in done.stderr
    assert "Traceback" not in done.stderr
