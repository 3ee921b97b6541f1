"""What open_clip knows of a model: its description, its tokenizer, and where its weights are."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star.models.conditioning.hub import fetch_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_KEY = "text_encoder.weights"
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_HUB_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_FOLDER_NAMES = (*_HUB_NAMES, "model.safetensors", "pytorch_model.bin")


def model_config(name: str) -> dict[str, Any]:
    """open_clip's description of a model.

    Raises:
        ValueError: when there is none, or when its text tower isn't open_clip's own.

    """
    import open_clip

    if name.startswith("hf-hub:"):
        raise ValueError(f"name={name!r}: give a model of open_clip or local-dir:FOLDER, and its weights as {_KEY}")
    config = open_clip.get_model_config(name)
    if config is None:
        near = ", ".join(difflib.get_close_matches(name, open_clip.list_models(), cutoff=0.4)) or "none"
        raise ValueError(f"open_clip has no model {name!r}; near: {near}; open_clip.list_models() has all")
    if inner := config["text_cfg"].get("hf_model_name"):
        raise ValueError(
            f"the text tower of {name} is the Hugging Face model {inner}; "
            "use star.models.conditioning.huggingface.HuggingFaceTextEncoder"
        )
    return config


def load_tokenizer(name: str, text_config: dict[str, Any]) -> Callable[..., Tensor]:
    """open_clip's tokenizer for a model; those that lie on the hub are taken from its cache only.

    Raises:
        FileNotFoundError: when the cache doesn't have it.

    """
    import open_clip

    hub_name = text_config.get("hf_tokenizer_name")
    if not hub_name:
        return open_clip.get_tokenizer(name)
    try:
        return open_clip.get_tokenizer(name, local_files_only=True)
    except OSError as error:
        raise FileNotFoundError(
            f"the tokenizer {hub_name} of {name} is not in the hub cache; "
            f"run `hf download {hub_name} --include '*token*' '*.json' '*.model'` once"
        ) from error


def is_path(weights: str) -> bool:
    """Whether a setting means a file or folder, not a tag of open_clip."""
    return "/" in weights or weights.endswith(_SUFFIXES)


def find_weights(name: str, weights: str) -> Path:
    """The file with a model's weights; no network is touched for a path, nor for a tag that the cache has.

    Raises:
        FileNotFoundError: when it is missing and can't be downloaded.

    """
    if not is_path(weights):
        return _tagged_file(name, weights)
    path = Path(weights).expanduser()
    if path.is_dir():
        for candidate in _FOLDER_NAMES:
            if (path / candidate).is_file():
                return path / candidate
        raise FileNotFoundError(f"{path} has none of {', '.join(_FOLDER_NAMES)}; set {_KEY}=PATH to the file itself")
    if path.is_file():
        return path
    raise FileNotFoundError(f"no weights for the text tower of {name} at {path}; set {_KEY}=PATH to a file that exists")


def check_tag(name: str, tag: str, *, quick_gelu: bool) -> None:
    """Refuse a tag that the model doesn't have, or whose weights were trained with the other GELU.

    Raises:
        ValueError: for such a tag; open_clip itself would run the latter with no more than a warning.

    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        raise ValueError(
            f"open_clip has no weights {tag!r} for {name}, but {', '.join(tags) or 'none'}; or {_KEY}=PATH"
        )
    trained_with = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))
    if trained_with != quick_gelu:
        other = f"{name}-quickgelu" if trained_with else name.removesuffix("-quickgelu")
        raise ValueError(
            f"the weights {tag!r} were trained with {_activation(trained_with)}, "
            f"but {name} has {_activation(quick_gelu)}; set text_encoder.name={other}"
        )


def check_activation(name: str, weights: Path, *, quick_gelu: bool) -> None:
    """Refuse a Hugging Face folder whose config.json names the other GELU.

    Raises:
        ValueError: for such a folder.

    """
    file = weights.with_name("config.json")
    if not file.is_file():
        return
    config = json.loads(file.read_text(encoding="utf-8"))
    activation = (config.get("text_config") or config).get("hidden_act")
    if activation is not None and (activation == "quick_gelu") != quick_gelu:
        raise ValueError(
            f"{file} says {activation}, but {name} has {_activation(quick_gelu)}; "
            "set text_encoder.name to a model that fits"
        )


def _activation(quick: bool) -> str:
    return "QuickGELU" if quick else "GELU"


def _tagged_file(name: str, tag: str) -> Path:
    import open_clip

    source = open_clip.get_pretrained_cfg(name, tag)
    if not source.get("hf_hub"):
        raise FileNotFoundError(
            f"the weights {tag!r} of {name} are at {source.get('url')}; download them and set {_KEY}=PATH"
        )
    repository, _, file = source["hf_hub"].rpartition("/")
    return fetch_file(repository, (f"{Path(file).stem}.safetensors", file) if file else _HUB_NAMES, key=_KEY)
