"""Reading a Hugging Face encoder's folder: its description, network and tokenizer, and nothing that could run code."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

_WIDTH_NAMES = ("hidden_size", "d_model", "dim", "n_embd")
_WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_FINAL_NORMS = ("final_layer_norm", "final_norm", "norm", "ln_f")
_TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt")


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json says of the text encoder; of a model with several parts, the text part.

    Raises:
        FileNotFoundError: when there is no config.json.
        ValueError: when it isn't a JSON object.

    """
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} is not a Hugging Face model folder: it has no config.json; set text_encoder.path=FOLDER"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} is not the description of a model: it holds a {type(config).__name__}")
    return config.get("text_config") or config


def described_width(folder: Path) -> int:
    """Size of the hidden states.

    Raises:
        ValueError: when config.json has none of the usual names for it.

    """
    config = read_config(folder)
    for name in _WIDTH_NAMES:
        if isinstance(config.get(name), int):
            return config[name]
    raise ValueError(f"{folder / 'config.json'} has none of {', '.join(_WIDTH_NAMES)}; set text_encoder.context_width")


def identifying_files(folder: Path, tokenizer: Path, *, weights: bool) -> list[Path]:
    """The files that decide what the encoder says."""
    files = [folder / "config.json", *(tokenizer / name for name in _TOKENIZER_NAMES)]
    if weights:
        files += [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    return [file for file in files if file.is_file()]


def read_network(folder: Path, *, random_weights: bool) -> nn.Module:
    """The encoder in float32 on the CPU; the decoder of an encoder-decoder and the image half of a CLIP are left out.

    Raises:
        FileNotFoundError: when the weights are missing.
        ValueError: when transformers doesn't know the folder's kind, or the weights don't fit its config.json.

    """
    from safetensors import SafetensorError

    config = read_config(folder)
    if not random_weights and not any((folder / name).is_file() for name in _WEIGHT_NAMES):
        raise FileNotFoundError(
            f"{folder} has no weights ({', '.join(_WEIGHT_NAMES)}); set text_encoder.path=FOLDER to one that has"
        )
    try:
        with _quiet_loading():
            network, lacking = _instantiate(folder, random_weights=random_weights)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        kind = config.get("model_type", "no model_type")
        raise ValueError(f"{folder} ({kind}) can't be read as a text encoder: {error}") from error
    # transformers fills what a file lacks with random numbers; a pooler's are never used here.
    if lost := sorted(name for name in lacking if "pooler" not in name):
        raise ValueError(
            f"the weights in {folder} lack {len(lost)} tensors that its config.json asks for: {', '.join(lost[:4])} ..."
        )
    return network


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer lies in the folder."""
    return any((folder / name).is_file() for name in _TOKENIZER_NAMES)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder.

    Raises:
        FileNotFoundError: when there is none.

    """
    from transformers import AutoTokenizer

    # The tokenizer's own threads make it complain in every data worker that is forked later.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not has_tokenizer(folder):
        raise FileNotFoundError(
            f"{folder} has no tokenizer ({', '.join(_TOKENIZER_NAMES)}); set text_encoder.tokenizer=FOLDER"
        )
    with _quiet_loading():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def final_norm(network: nn.Module) -> nn.Module | None:
    """The norm that the encoder applies to its last layer's output, None where there is none (BERT)."""
    for owner in (network, getattr(network, "encoder", None), getattr(network, "text_model", None)):
        for name in _FINAL_NORMS:
            if isinstance(norm := getattr(owner, name, None), torch.nn.Module):
                return norm
    return None


def _instantiate(folder: Path, *, random_weights: bool) -> tuple[nn.Module, set[str]]:
    """The network, and the names of what its weights lack."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

    described = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model_class: Any
    if described.model_type == "clip":  # a whole CLIP, of which only the text tower is built
        model_class, described = transformers.CLIPTextModel, described.text_config
    else:
        mapping: Any = MODEL_FOR_TEXT_ENCODING_MAPPING
        model_class = mapping.get(type(described), transformers.AutoModel)
    lacking: set[str] = set()
    if random_weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            build = getattr(model_class, "_from_config", None) or model_class.from_config
            network = build(described)
    else:
        network, found = model_class.from_pretrained(
            folder,
            config=described,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
        lacking = set(found["missing_keys"])
    whole = getattr(described, "is_encoder_decoder", False) and not model_class.__name__.endswith("EncoderModel")
    return (network.get_encoder() if whole else network), lacking


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """No progress bars or tables of tensors while a model is read: what matters becomes an error."""
    from transformers.utils import logging as library

    verbosity, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        if bars:
            library.enable_progress_bar()
