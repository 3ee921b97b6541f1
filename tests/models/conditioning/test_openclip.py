from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from star.models.conditioning import openclip
from star.models.conditioning.openclip import OpenCLIPTextEncoder

GOLDEN = Path(__file__).parents[2] / "golden"
CAPTIONS = ["a red circle above a blue square", "", "a cat", "two dogs and a cat"]


def model_folder(folder: Path, **text: object) -> str:
    """A tiny model that open_clip knows."""
    text_cfg = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3, **text}
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    config = {"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text_cfg}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


@pytest.fixture
def golden_weights(tmp_path: Path) -> Path:
    weights = {
        name: tensor.float() for name, tensor in load_file(GOLDEN / "clip_text_tiny.weights.safetensors").items()
    }
    save_file(weights, tmp_path / "model.safetensors")
    config = json.loads((GOLDEN / "clip_text_tiny.weights.json").read_text())["config"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_text_model", **config}))
    return tmp_path


def test_agrees_with_the_release_on_hugging_faces_weights(golden_weights: Path, tmp_path: Path) -> None:
    """3 of 4 blocks and the final norm are the release's text encoder of 3 blocks (text_encoder.py:54-69)."""
    name = model_folder(tmp_path, context_length=77, vocab_size=600, width=64, heads=4, layers=4)
    encoder = OpenCLIPTextEncoder(name, weights=f"{golden_weights}/", layers="penultimate")
    expected = load_file(GOLDEN / "clip_text_tiny.safetensors")
    for ids, length, hidden, pooled in zip(
        expected["input_ids"],
        expected["attention_mask"].sum(1).tolist(),
        expected["last_hidden_state"],
        expected["pooler_output"],
        strict=True,
    ):
        ours_pooled, ours_hidden = encoder.encode_tokens(ids[None, :length])
        torch.testing.assert_close(ours_hidden[0], hidden[:length], rtol=0, atol=1e-4)
        torch.testing.assert_close(ours_pooled[0], pooled, rtol=0, atol=1e-4)


def reference(tower: torch.nn.Module, caption: str, layers: int) -> tuple[Tensor, Tensor]:
    """open_clip's own hidden states of a padded caption, and its tokens."""
    import open_clip

    tokens = open_clip.get_tokenizer("ViT-B-32")([caption], context_length=20)
    intermediates = tower.forward_intermediates(tokens, indices=[layers - 1], output_fmt="NLC")  # type: ignore[operator]
    return tower.ln_final(intermediates["text_intermediates"][0])[0], tokens[0]  # type: ignore[operator]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_agrees_with_open_clips_own_forward_pass(layers: int, tmp_path: Path) -> None:
    import open_clip

    name = model_folder(tmp_path)
    torch.manual_seed(1)
    whole = open_clip.create_model(name, load_weights=False).eval()
    torch.save(whole.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    condition = OpenCLIPTextEncoder(name, weights=f"{tmp_path}/", layers=layers)(CAPTIONS)
    assert condition.context is not None
    assert condition.context_mask is not None
    text = open_clip.transformer.TextTransformer(20, 49408, 16, 2, 3, output_dim=8)
    text.load_state_dict({n: t for n, t in whole.state_dict().items() if not n.startswith(("visual", "logit_scale"))})
    for row, caption in enumerate(CAPTIONS):
        with torch.no_grad():
            hidden, tokens = reference(text.eval(), caption, layers)
        length = int(tokens.argmax()) + 1
        assert int(condition.context_mask[row].sum()) == length
        torch.testing.assert_close(condition.context[row, :length], hidden[:length], rtol=0, atol=1e-5)
        torch.testing.assert_close(condition.pooled[row], hidden[length - 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [{}, {"embed_cls": True}, {"no_causal_mask": True, "pool_type": "last"}])
def test_a_caption_does_not_depend_on_its_batch(kind: dict[str, object], tmp_path: Path) -> None:
    encoder = OpenCLIPTextEncoder(model_folder(tmp_path, **kind), weights=None)
    batch = encoder(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        single = encoder([caption])
        torch.testing.assert_close(batch.context[row], single.context[0], rtol=0, atol=1e-5)  # type: ignore[index]
        torch.testing.assert_close(batch.pooled[row], single.pooled[0], rtol=0, atol=1e-5)


def test_bidirectional_towers_see_their_padding_as_in_training(tmp_path: Path) -> None:
    """SigLIP's way: no mask at all, pooled at the last position; padding is left out of the context only."""
    encoder = OpenCLIPTextEncoder(model_folder(tmp_path, no_causal_mask=True, pool_type="last"), weights=None, layers=3)
    ids, _ = encoder.tokenize("a cat")
    padded = torch.tensor([[*ids, *[0] * (20 - len(ids))]])
    tower = encoder.network
    hidden = tower.ln_final(tower.transformer(tower.token_embedding(padded) + tower.positional_embedding))  # type: ignore[operator]
    condition = encoder(["a cat"])
    torch.testing.assert_close(condition.pooled, hidden[:, -1], rtol=0, atol=1e-5)
    torch.testing.assert_close(condition.context[:, : len(ids)], hidden[:, : len(ids)], rtol=0, atol=1e-5)  # type: ignore[index]


def test_class_token_positions_of_coca_are_left_out(tmp_path: Path) -> None:
    import open_clip

    torch.manual_seed(1)
    text = open_clip.transformer.TextTransformer(20, 49408, 16, 2, 3, embed_cls=True)
    torch.save({f"text.{name}": tensor for name, tensor in text.state_dict().items()}, tmp_path / "coca.pt")
    encoder = OpenCLIPTextEncoder(model_folder(tmp_path, embed_cls=True), weights=f"{tmp_path}/coca.pt")
    assert torch.equal(encoder.network.positional_embedding, text.positional_embedding[:20])


def test_a_cut_caption_keeps_its_end_of_text(tmp_path: Path) -> None:
    encoder = OpenCLIPTextEncoder(model_folder(tmp_path), weights=None)
    ids, truncated = encoder.tokenize("cat " * 30)
    assert truncated
    assert (len(ids), ids[0], ids[-1]) == (20, 49406, 49407)
    exact, whole = encoder.tokenize("cat " * 18)
    assert exact == ids
    assert not whole


def test_random_weights_are_the_same_every_time_and_leave_the_seed_alone(tmp_path: Path) -> None:
    name = model_folder(tmp_path)
    state = torch.get_rng_state()
    first, second = (OpenCLIPTextEncoder(name, weights=None)(["a cat"]) for _ in range(2))
    assert torch.equal(first.pooled, second.pooled)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_of_another_size_are_refused(golden_weights: Path, tmp_path: Path) -> None:
    encoder = OpenCLIPTextEncoder(model_folder(tmp_path), weights=f"{golden_weights}/", layers=3)
    with pytest.raises(ValueError, match="does not fit the text tower"):
        encoder.load()


def test_the_published_encoder_is_described_without_its_weights() -> None:
    encoder = OpenCLIPTextEncoder(weights="laion2b_s32b_b79k", layers=23, context_width=1024)
    assert (encoder.pooled_width, encoder.context_width, encoder.max_tokens, encoder.layers) == (1024, 1024, 77, 23)
    assert encoder.identity == "openclip/ViT-H-14/laion2b_s32b_b79k/layers23/tokens77/fp32"
    with torch.device("meta"):
        tower = OpenCLIPTextEncoder(weights=None, layers=23).build()
    assert sum(parameter.numel() for parameter in tower.parameters()) == pytest.approx(340e6, rel=0.01)


def test_missing_weights_are_an_error_when_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object) -> Path:
        raise FileNotFoundError("set text_encoder.weights=PATH")

    encoder = OpenCLIPTextEncoder("ViT-L-14-quickgelu", weights="openai")
    monkeypatch.setattr(openclip, "find_weights", nothing)
    with pytest.raises(FileNotFoundError, match=r"text_encoder.weights=PATH"):
        encoder(["a cat"])


@pytest.mark.parametrize("layers", [0, 25, -1, "last", 2.5])
def test_layers_that_do_not_exist_are_refused(layers: object) -> None:
    with pytest.raises(ValueError, match="24 blocks"):
        OpenCLIPTextEncoder(layers=layers)  # type: ignore[arg-type]


def test_identity_follows_the_contents_of_a_file(golden_weights: Path, tmp_path: Path) -> None:
    name = model_folder(tmp_path)
    (tmp_path / "other").mkdir()
    copied = tmp_path / "other" / "model.safetensors"
    copied.write_bytes((golden_weights / "model.safetensors").read_bytes())
    here, there = (
        OpenCLIPTextEncoder(name, weights=str(path)).identity for path in (golden_weights / "model.safetensors", copied)
    )
    assert here == there
    assert OpenCLIPTextEncoder(name, weights=str(copied), layers=1).identity != there
