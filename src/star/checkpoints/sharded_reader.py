"""Reading a sharded checkpoint without running what is in it."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from star.checkpoints.sharded import META, is_sharded, numbered, read_meta

_TRUSTED = {
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "WindowsPath"},
    "pathlib._local": {"Path", "PosixPath", "WindowsPath"},
    "torch": {"Size"} | {name for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}


class SafeReader(dcp.FileSystemReader):
    """PyTorch's reader of such folders, with a table of contents that can name nothing but its own classes."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The table of contents.

        Raises:
            ValueError: when the file is damaged, or names anything that no table of contents needs.

        """
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as file:
                metadata = _TableUnpickler(file).load()
        except (pickle.UnpicklingError, EOFError, AttributeError) as error:
            raise ValueError(f"{path} can't be read: {error}") from error
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class SafePlanner(DefaultLoadPlanner):
    """PyTorch's way of reading, but for values that aren't tensors: plain containers, never code."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Take what was read, once it turned out to be harmless."""
        try:
            held = torch.load(value, weights_only=True)
        except pickle.UnpicklingError as error:
            name = read_item.dest_index.fqn
            raise ValueError(f"{name} holds more than plain containers and was not read") from error
        buffer = io.BytesIO()
        torch.save(held, buffer)
        buffer.seek(0)
        super().load_bytes(read_item, buffer)


def weight_shapes(table: Metadata) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's tensors, by name, from a table of contents."""
    prefix = "state_dict."
    entries = {name: entry for name, entry in table.state_dict_metadata.items() if name.startswith(prefix)}
    return {
        name[len(prefix) :]: tuple(entry.size)
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def load_parts(state: dict[str, Any], reader: SafeReader, *, no_dist: bool = False, **how: bool) -> None:
    """Fill a state with what a folder has of it.

    Args:
        state: containers of tensors; a spread one takes this process's part.
        reader: of the folder.
        no_dist: read alone, whatever other processes do.
        how: as for PyTorch's DefaultLoadPlanner.

    Raises:
        ValueError: when something is missing, of another shape, damaged, or more than plain containers.

    """
    try:
        dcp.load(state, storage_reader=reader, planner=SafePlanner(**how), no_dist=no_dist)
    except CheckpointException as error:  # a BaseException, of all things
        failures = [failure for failure, _ in error.failures.values()]
        raise ValueError(f"{reader.path} can't be read: {failures[0]}") from error


class _TableUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _TRUSTED.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def read_sharded(folder: str | Path) -> dict[str, Any]:
    """The folder as the one checkpoint that a single process would have written.

    It all has to fit into main memory at once.

    Raises:
        ValueError: when it isn't such a folder, is damaged, or holds more than tensors and plain containers.

    """
    path = Path(folder)
    if not is_sharded(path):
        raise ValueError(f"{path} is not a sharded checkpoint (or only a part of one): it needs .metadata and {META}")
    reader = SafeReader(path)
    table = reader.read_metadata()
    flat: dict[str, Any] = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype) if isinstance(entry, TensorStorageMetadata) else None
        for key, entry in table.state_dict_metadata.items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load_parts(flat, reader, flatten_state_dict=False, flatten_sharded_tensors=False, no_dist=True)
    state: dict[str, Any] = _nested({table.planner_data[key]: value for key, value in flat.items()})
    checkpoint = read_meta(path)
    checkpoint["state_dict"] = state["state_dict"]
    if "averaged" in state:
        checkpoint["averaged"]["weights"] = state["averaged"]
    optimizers = sorted((key for key in state if key.startswith("optimizer_")), key=lambda key: int(key[10:]))
    checkpoint["optimizer_states"] = [numbered(state[key]) for key in optimizers]
    return checkpoint


def _nested(flat: Mapping[tuple[Any, ...], Any]) -> Any:
    """Dictionaries and lists from values by path; a whole number in a path is a place in a list."""
    if list(flat) == [()]:
        return flat[()]
    parts: dict[Any, dict[tuple[Any, ...], Any]] = {}
    for path, value in flat.items():
        parts.setdefault(path[0], {})[path[1:]] = value
    if all(isinstance(key, int) for key in parts):
        return [_nested(parts[key]) for key in sorted(parts)]
    return {key: _nested(part) for key, part in parts.items()}
