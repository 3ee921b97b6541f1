from __future__ import annotations

import logging

import pytest

from star.utils.command import run_command, split_arguments


def test_help_and_no_words_explain_and_do_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[list[str]] = []
    for words in (["--help"], ["out=x", "-h"], []):
        run_command("explained\n", done.append, words)
        assert capsys.readouterr().out == "explained\n"
    assert done == []
    run_command("explained\n", done.append, [], bare=True)
    run_command("explained\n", done.append, ["out=x"])
    assert done == [[], ["out=x"]]


def test_an_error_is_one_message_and_a_failed_process(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: list[str]) -> None:
        raise ValueError("out=x can't be")

    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as stopped:
        run_command("", fail, ["out=x"])
    assert stopped.value.code == 1
    assert caplog.messages == ["out=x can't be"]


def test_own_words_are_split_from_the_configurations() -> None:
    words = ["out=a=b", "stage=64", "data.x=1", "out=c"]
    assert split_arguments(words, ["out"]) == ({"out": "c"}, ("stage=64", "data.x=1"))
    with pytest.raises(ValueError, match=r"arguments are KEY=VALUE, got 'wrkers'; workers=\.\.\.\?"):
        split_arguments(["wrkers"], ["workers"])
