from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from star.models.conditioning.huggingface_files import (
    described_width,
    final_norm,
    read_config,
    read_network,
    read_tokenizer,
)


def bert_folder(folder: Path) -> Path:
    import transformers

    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    transformers.utils.logging.disable_progress_bar()
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("config", "width"),
    [
        ({"hidden_size": 8}, 8),
        ({"d_model": 16}, 16),
        ({"dim": 4}, 4),
        ({"hidden_size": 9, "text_config": {"hidden_size": 8}}, 8),
    ],
)
def test_width_by_any_of_its_names(config: dict[str, object], width: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert described_width(tmp_path) == width


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_config_that_says_nothing_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config.json"):
        described_width(tmp_path)


def test_a_folder_without_a_model_or_tokenizer_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"text_encoder.path=FOLDER"):
        read_config(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"text_encoder.tokenizer=FOLDER"):
        read_tokenizer(tmp_path)


def test_weights_that_lack_tensors_are_refused_instead_of_filled_in(tmp_path: Path) -> None:
    file = bert_folder(tmp_path) / "model.safetensors"
    weights = load_file(file)
    pooler = {name: weights.pop(name) for name in list(weights) if "pooler" in name}
    assert pooler
    save_file(weights, file, metadata={"format": "pt"})
    read_network(tmp_path, random_weights=False)
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 tensors.*encoder.layer.1.output.dense.bias"):
        read_network(tmp_path, random_weights=False)


def test_damaged_weights_and_unknown_kinds_are_named(tmp_path: Path) -> None:
    (bert_folder(tmp_path) / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ValueError, match="can't be read as a text encoder"):
        read_network(tmp_path, random_weights=False)
    (tmp_path / "config.json").write_text('{"model_type": "no_such_kind", "hidden_size": 8}')
    with pytest.raises(ValueError, match="no_such_kind"):
        read_network(tmp_path, random_weights=False)


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    bert_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    with pytest.raises(ValueError, match="can't be read as a text encoder"):
        read_network(tmp_path, random_weights=False)
    assert not (tmp_path / "executed").exists()


def test_final_norm_where_there_is_one() -> None:
    import transformers

    t5 = transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    assert final_norm(t5) is t5.encoder.final_layer_norm
    assert final_norm(torch.nn.Linear(1, 1)) is None
