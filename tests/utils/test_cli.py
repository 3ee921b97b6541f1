from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from star.utils.cli import plain, quote_arguments, readable_errors


def parsed(argument: str) -> object:
    """What Hydra and OmegaConf make of an argument after quoting."""
    override = OverridesParser.create().parse_override(quote_arguments([argument])[0])
    config = OmegaConf.create({"value": override.value()})
    return config.value


@pytest.mark.parametrize(
    "text",
    [
        "a red circle",
        "a painter's (old) hat, red",
        'he said "no", twice',
        "epoch=1-step=2.ckpt",
        "512",
        "C:\\folder\\",
        'ends with \\"',
        "costs $5 or ${five}",
        "[a, b] {c: d}",
        "  spaces  ",
        "naïve café 日本",
        "~tilde and %percent",
    ],
)
def test_free_text_arrives_as_it_was_typed(text: str) -> None:
    assert parsed(f"prompt={text}") == text
    assert parsed(f"+prompt={text}") == text


@pytest.mark.parametrize("text", ["/shards/{00000..00999}.tar", "/{a,b}/*.tar", "pipe:curl -s https://host/a.tar?b=c"])
def test_addresses_of_shards_arrive_as_they_were_typed(text: str) -> None:
    assert parsed(f"data.sources.laion.urls={text}") == text
    assert parsed(f"+data.validation_sources.folder.urls={text}") == text


def test_a_list_of_addresses_stays_a_list() -> None:
    assert parsed("data.sources.laion.urls=[a.tar,'{0..1}.tar']") == ["a.tar", "{0..1}.tar"]


def test_digits_of_numeric_groups_are_quoted() -> None:
    assert quote_arguments(["stage=512", "stage=256,512", "stage=custom", "batch_size=512"]) == [
        "stage='512'",
        "stage='256','512'",
        "stage=custom",
        "batch_size=512",
    ]


def test_what_is_quoted_or_null_stays() -> None:
    unchanged = ["prompt='a, b'", 'prompt="a, b"', "resume_from=null", "prompt=", "-m", "--help", "model=d30"]
    assert quote_arguments(unchanged) == unchanged


def test_missing_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"set a\.b=\.\.\., ckpt=\.\.\."):
        plain(OmegaConf.create({"a": {"b": "???"}, "ckpt": "???"}))


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_ctrl_c_is_one_line_and_130(
    rank: str, lines: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RANK", rank)
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as stopped, readable_errors():
        raise KeyboardInterrupt
    assert stopped.value.code == 130
    assert [record.getMessage() for record in caplog.records] == ["stopped by ctrl-C"] * lines


def test_a_command_that_hears_ctrl_c_shows_no_trace() -> None:
    program = (
        "import signal, time; from star.utils.cli import readable_errors\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a suite in the background ignores it
        "with readable_errors():\n    print('ready', flush=True)\n    time.sleep(60)"
    )
    command = [sys.executable, "-c", program]
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "stopped by ctrl-C\n"
