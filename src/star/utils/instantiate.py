"""From configuration to objects: anything for the user's own, only this package's classes for a checkpoint's."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

TRUSTED = (
    "star.models.",
    "star.nn.",
    "star.objectives.",
    "star.sampling.",
    "star.schedule.",
    "star.training.",
    "star.extensions.",
)


def instantiate(config: Any, **overrides: Any) -> Any:
    """Hydra's instantiate; what a constructor raised arrives as it was raised.

    Plain containers reach the constructors as Python lists and dictionaries.

    Raises:
        ValueError: for settings of this package's classes that aren't of the right kind, such as null for a number.

    """
    if isinstance(config, dict | list):
        config = OmegaConf.create(config)
    try:
        return hydra.utils.instantiate(config, _convert_="all", **overrides)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | OSError | ModuleNotFoundError):
            raise error.__cause__ from error
        if isinstance(error.__cause__, TypeError | ArithmeticError | LookupError) and (said := _refused(config, error)):
            raise ValueError(f"{said}: {error.__cause__}") from error
        raise


def _refused(config: Any, error: InstantiationException) -> str | None:
    """Which class of this package can't be built with which settings; None for somebody else's."""
    found = re.search(r"'(star\.[\w.]+)'", str(error))
    place = re.search(r"full_key: (\S+)", str(error))
    if found is None:
        return None
    node = OmegaConf.select(config, place[1]) if place else config
    settings: Any = OmegaConf.to_container(node) if OmegaConf.is_dict(node) else {}
    shown = [
        f"{name}={'null' if value is None else value}"
        for name, value in settings.items()
        if name != "_target_" and not isinstance(value, dict)
    ]
    return f"{found[1]} can't be built with {', '.join(shown) or 'these parts'}"


def build_all(configs: Mapping[str, Any] | None) -> list[Any]:
    """Instantiate each entry of a mapping (callbacks, loggers); null entries are left out."""
    return [instantiate(config) for config in (configs or {}).values() if config is not None]


def instantiate_trusted(config: Any, *, packages: Sequence[str] = ()) -> Any:
    """Instantiate a configuration that came with somebody's checkpoint.

    Opening a stranger's file must never run a stranger's choice of code: every `_target_` has to be a class that this
    package (or one that the user trusts by name) defines; functions, and names that a module merely imported, are
    refused.

    Raises:
        ValueError: names the target that isn't trusted.

    """
    for target in targets(config):
        _check(target, (*TRUSTED, *(f"{package}." for package in packages)))
    return instantiate(config)


def targets(config: Any) -> list[str]:
    """Every `_target_` in nested containers."""
    found: list[str] = []
    if isinstance(config, Mapping):
        found += [str(config["_target_"])] if "_target_" in config else []
        for value in config.values():
            found += targets(value)
    elif isinstance(config, Sequence) and not isinstance(config, str):
        for value in config:
            found += targets(value)
    return found


def _check(target: str, trusted: tuple[str, ...]) -> None:
    if target.startswith(trusted):
        module, _, name = target.rpartition(".")
        owner = hydra.utils.get_object(module)
        found = getattr(owner, name, None)
        if inspect.ismodule(owner) and inspect.isclass(found) and found.__module__ == module:
            return
    raise ValueError(
        f"the checkpoint's configuration names {target!r}, which is not one of this package's classes: not opened. "
        "Trust a package of yours with trusted=[NAME]"
    )
