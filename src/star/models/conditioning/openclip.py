"""The text towers of open_clip, cut after any block: what STAR conditions on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from star.models.conditioning.base import FrozenTextEncoder
from star.models.conditioning.clip_weights import read_text_tower
from star.models.conditioning.hub import fingerprint
from star.models.conditioning.openclip_files import (
    check_activation,
    check_tag,
    find_weights,
    is_path,
    load_tokenizer,
    model_config,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# The text token whose feature stands for the text; every other kind takes the end-of-text token.
_POOLED_AT = {"first": 0, "last": -1}


class OpenCLIPTextEncoder(FrozenTextEncoder):
    """Hidden states after `layers` blocks and the final norm; pooled is the same at the end-of-text token, unprojected.

    STAR takes ViT-H-14 and 23 of its 24 blocks, which is the text encoder that ships with Stable Diffusion 2.1. Only
    those blocks of the text tower are built. Towers that were trained without a causal mask see their padding, as in
    training, and are pooled at the position they were trained with; the padding itself is left out of the context.

    Args:
        name: a model of open_clip, or `local-dir:FOLDER` with an `open_clip_config.json`.
        weights: a tag of that model, looked for in the hub's cache and then on the hub; a file or folder (open_clip's
            or Hugging Face's layout, e.g. the `text_encoder` folder of Stable Diffusion 2.1), for which no network is
            touched; or None for random weights, the same ones every time.
        layers: how many blocks run before the final norm; `penultimate` is all but the last.
        options: `pooled_width`, `context_width`, `dtype`, `pass_size`, `batch_invariant`, `memoize`, `memo_limit` of
            `FrozenTextEncoder`.

    Raises:
        ValueError: for an unknown model or tag, one whose text tower isn't open_clip's own, a number of layers it
            doesn't have, or weights that were trained with QuickGELU under a name that means GELU, or the reverse.

    """

    def __init__(
        self,
        name: str = "ViT-H-14",
        *,
        weights: str | None = "laion2b_s32b_b79k",
        layers: int | str = "penultimate",
        **options: Any,
    ) -> None:
        config = model_config(name)
        text = config["text_cfg"]
        depth = text.get("layers", 12)
        count = depth - 1 if layers == "penultimate" else layers
        if not isinstance(count, int) or not 1 <= count <= depth:
            raise ValueError(
                f"layers={layers!r}: the text tower of {name} has {depth} blocks; give 1 to {depth} or 'penultimate'"
            )
        width, max_tokens = text.get("width", 512), text.get("context_length", 77)
        super().__init__(width=width, max_tokens=max_tokens, owner=name, **options)
        self.name = name
        self.weights = weights
        self.layers = count
        # Without class token and projection: STAR uses neither.
        self._text = {**text, "layers": count, "embed_cls": False, "proj_type": "none"}
        self._has_class_token = bool(text.get("embed_cls", False))
        self._quick_gelu = bool(config.get("quick_gelu", False))
        self._tokenizer: Callable[..., Tensor] | None = None
        if weights is not None and not is_path(weights):
            check_tag(name, weights, quick_gelu=self._quick_gelu)

    @property
    def identity(self) -> str:
        """Model, weights (a path's contents, not its name), layers, tokens, precision."""
        source = self.weights or "random"
        if self.weights is not None and is_path(self.weights):
            source = fingerprint([find_weights(self.name, self.weights)])
        return f"openclip/{self.name}/{source}/layers{self.layers}/tokens{self.max_tokens}/{self.dtype}"

    def build(self) -> nn.Module:
        """The text tower with its weights; see `FrozenTextEncoder.build`."""
        # open_clip has no public way to build a text tower without the image tower beside it.
        from open_clip.model import _build_text_tower

        if self.weights is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return _build_text_tower(self.pooled_width, self._text, self._quick_gelu)
        file = find_weights(self.name, self.weights)
        check_activation(self.name, file, quick_gelu=self._quick_gelu)
        state = {name: tensor.float() for name, tensor in read_text_tower(file, layers=self.layers).items()}
        with torch.device("meta"):
            tower = _build_text_tower(self.pooled_width, self._text, self._quick_gelu)
        if self._has_class_token:  # its position is the last row
            state["positional_embedding"] = state["positional_embedding"][:-1]
        try:
            tower.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise ValueError(f"{file} does not fit the text tower of {self.name}: {error}") from error
        if tower.attn_mask is not None:
            tower.attn_mask = tower.build_causal_mask()
        return tower

    def tokenize(self, caption: str) -> tuple[list[int], bool]:
        """Ids up to the end-of-text token; a caption that is too long keeps that token."""
        ids = self._unpadded(caption, self.max_tokens)
        return ids, len(ids) == self.max_tokens and len(self._unpadded(caption, self.max_tokens + 1)) > self.max_tokens

    def encode_tokens(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Encode ids (N, n) long without padding: pooled (N, width) and hidden states (N, n, width)."""
        tower: Any = self.network
        length = ids.shape[1]
        causal = tower.attn_mask is not None
        if not causal:
            ids = nn.functional.pad(ids, (0, self.max_tokens - length), value=self._pad_id())
        x = tower.token_embedding(ids) + tower.positional_embedding[: ids.shape[1]]  # (N, n, width)
        mask = tower.attn_mask[:length, :length] if causal else None
        hidden = tower.ln_final(tower.transformer(x, attn_mask=mask))
        return hidden[:, _POOLED_AT.get(tower.pool_type, length - 1)], hidden[:, :length]

    def _unpadded(self, caption: str, max_tokens: int) -> list[int]:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.name, self._text)
        ids = self._tokenizer([caption], context_length=max_tokens)[0].tolist()
        pad = self._pad_id()
        while len(ids) > 1 and ids[-1] == pad:
            ids.pop()
        return ids

    def _pad_id(self) -> int:
        inner = getattr(self._tokenizer, "tokenizer", None)  # the Hugging Face tokenizer, where open_clip wraps one
        return getattr(inner, "pad_token_id", None) or 0
