"""What stands between a shell and Hydra: quoting, configuration lookup, readable errors."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import ConfigCompositionException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf

log = logging.getLogger(__name__)

NUMERIC_GROUPS = {"stage"}
FREE_TEXT = {
    "prompt",
    "negative_prompt",
    "prompts",
    "ckpt",
    "refiner",
    "resume_from",
    "init_from",
    "weights",
    "images",
    "reference",
    "out",
    "paths.run_dir",
    "hydra.run.dir",
    "paths.tokenizer",
    "paths.data",
    "paths.pictures",
    "paths.cache",
    "paths.mjhq",
    "paths.coco",
    "paths.dpg",
    "paths.image_reward",
    "paths.hpsv2",
    "shards",
    "metric.weights",
    "metric.items.geneval.results",
    "metric.items.geneval.detector.weights",
    "metric.items.dpg.answers",
    "metric.items.image_reward.metric.file",
    "data.directory",
    "text_encoder.weights",
    "text_encoder.path",
    "text_encoder.tokenizer",
}
ADDRESSES = re.compile(r"data\.(validation_)?sources\.[^.]+\.urls")  # shards, whose braces Hydra would parse


def quote_arguments(arguments: Sequence[str]) -> list[str]:
    """Make a command line safe for Hydra's grammar.

    Hydra reads `stage=512` as an integer and refuses it as a group's option; and it would parse commas, quotes,
    brackets and `=` in free text (`prompt=a painter's (old) hat, red`) and braces in addresses of shards. Digits of
    numeric groups and the values of free-text keys are quoted; what the user quoted already, `null`, and a list of
    addresses stay.
    """
    return [_quote(argument) for argument in arguments]


def _quote(argument: str) -> str:
    key, equals, value = argument.partition("=")
    name = key.lstrip("+")
    if not equals or key.startswith("-"):
        return argument
    if name in NUMERIC_GROUPS:
        return f"{key}=" + ",".join(f"'{part}'" if part.isdigit() else part for part in value.split(","))
    free = name in FREE_TEXT or (ADDRESSES.fullmatch(name) and not value.startswith("["))
    if free and value not in ("", "null") and not _is_quoted(value):
        return f"{key}={_as_string(value)}"
    return argument


def _is_quoted(value: str) -> bool:
    """Whether the value is one Hydra string in quotes: no bare quote of the same kind inside."""
    if len(value) < 2 or value[0] not in "'\"" or value[-1] != value[0]:
        return False
    return value[0] not in value[1:-1].replace("\\" + value[0], "")


def _as_string(value: str) -> str:
    """A Hydra string whose value is exactly `value`: quotes and backslashes before them escaped, no interpolation."""
    escaped = []
    backslashes = 0
    for i, character in enumerate(value):
        if character == '"':
            escaped.append("\\" * backslashes + '\\"')
        elif value.startswith("${", i):
            escaped.append("\\" * backslashes + "\\$")
        else:
            escaped.append(character)
        backslashes = backslashes + 1 if character == "\\" else 0
    return '"' + "".join(escaped) + "\\" * backslashes + '"'


def prepare(arguments: list[str] | None = None) -> None:
    """Quote `sys.argv` in place and register the resolvers that conf/ uses; call before `hydra.main`'s function."""
    arguments = sys.argv if arguments is None else arguments
    arguments[1:] = quote_arguments(arguments[1:])
    register_resolvers()


def register_resolvers() -> None:
    """`${count:${schedule.sizes}}`: how many entries a list has; `${shorter:${resolution}}`: the shorter side."""
    OmegaConf.register_new_resolver("count", _count, replace=True)
    OmegaConf.register_new_resolver("shorter", _shorter, replace=True)


def _count(values: Sequence[Any] | ListConfig) -> int:
    return len(values)


def _shorter(resolution: int | ListConfig) -> int:
    return resolution if isinstance(resolution, int) else min(resolution)


def conf_directory() -> Path:
    """Where conf/ is: `STAR_CONF`, or the working directory's.

    Raises:
        FileNotFoundError: when neither has a train.yaml.

    """
    directory = Path(os.environ.get("STAR_CONF", "conf")).resolve()
    if not (directory / "train.yaml").is_file():
        raise FileNotFoundError(
            f"no configuration in {directory}: run from the project's root or set STAR_CONF to its conf/ folder"
        )
    return directory


def compose(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration that `python NAME.py OVERRIDES` would run with, for commands besides the root scripts."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    register_resolvers()
    around = GlobalHydra.instance().hydra  # a root script's, which composed its own configuration already
    GlobalHydra.instance().hydra = None
    try:
        with hydra.initialize_config_dir(version_base=None, config_dir=str(conf_directory())):
            return hydra.compose(name, quote_arguments(overrides))
    finally:
        GlobalHydra.instance().hydra = around


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain dictionaries, interpolations resolved.

    Raises:
        ValueError: for a value that has to be set and isn't.

    """
    register_resolvers()  # a launcher's job begins here, without `prepare`
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"set {', '.join(f'{key}=...' for key in missing)}")
    container = OmegaConf.to_container(config, resolve=True)
    if not isinstance(container, dict):
        raise TypeError(f"expected a mapping, got {type(container).__name__}")
    return {str(key): value for key, value in container.items()}


@contextmanager
def readable_errors() -> Iterator[None]:
    """Say in one message what a user can mend; the traceback goes to the log at debug level.

    Ctrl-C ends a command with 130, as a shell's own do, and one line (torchrun's rank 0 speaks for all).
    """
    try:
        yield
    except KeyboardInterrupt:
        log.debug("traceback", exc_info=True)
        if os.environ.get("RANK", "0") == "0":
            log.error("stopped by ctrl-C")
        sys.exit(130)
    except (ConfigCompositionException, OverrideParseException) as error:
        cause = "" if error.__cause__ is None else f": {error.__cause__}"
        log.error("%s%s", error, cause)
        sys.exit(1)
    except (
        ValueError,
        FileNotFoundError,
        FileExistsError,
        IsADirectoryError,
        NotADirectoryError,
        OSError,
        ModuleNotFoundError,
        FloatingPointError,
    ) as error:
        log.debug("traceback", exc_info=True)
        log.error("%s", error)
        sys.exit(1)
