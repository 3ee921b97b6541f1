"""Any Hugging Face text encoder from a local folder: T5, CLIP text, BERT and their kin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from star.models.conditioning.base import FrozenTextEncoder
from star.models.conditioning.hub import find_folder, fingerprint
from star.models.conditioning.huggingface_files import (
    described_width,
    final_norm,
    has_tokenizer,
    identifying_files,
    read_config,
    read_network,
    read_tokenizer,
)
from star.models.conditioning.standardize import (
    CAPTIONS,
    Standardizer,
    captions_digest,
    captions_from,
)
from star.models.conditioning.widths import check_widths

if TYPE_CHECKING:
    from torch import Tensor, nn

_KEY = "text_encoder.path"
_POOLINGS = ("eos", "mean", "cls")


class HuggingFaceTextEncoder(FrozenTextEncoder):
    """Hidden states of a pre-trained encoder, pooled at one token or averaged over a caption's own tokens.

    Args:
        path: a folder with config.json, weights and tokenizer; `package:NAME`, an installed Python package that ships
            such a folder as `model`; or `owner/name[/folder]` in the hub's cache. No network is touched and no code
            from the folder is run.
        pooling: `eos`: the last token (CLIP's and T5's end of text, BERT's separator); `cls`: the first; `mean`.
        layer: -1 is the encoder's output; another number is that entry of its hidden states (0: embeddings), followed
            by the encoder's final norm where it has one.
        max_tokens: how many tokens of a caption are used, special tokens included.
        pooled_width, context_width: size of the hidden states; with both None it is read from the folder at once.
        tokenizer: the tokenizer's folder (the same three forms) when it is neither in the encoder's folder nor,
            as in Stable Diffusion's, in `tokenizer` beside it.
        standardize: subtract each dimension's mean and divide by its deviation, for hidden states and pooled feature
            alike, over a built-in list of captions (True) or a text file's lines.
        random_weights: build the folder's architecture with random weights instead, the same ones every time.
        options: `dtype`, `pass_size`, `batch_invariant`, `memoize`, `memo_limit` of `FrozenTextEncoder`.

    Raises:
        FileNotFoundError: when the width has to be read and there is no folder.
        ValueError: for an unknown pooling, or a folder whose width can't be found.

    """

    def __init__(
        self,
        path: str,
        *,
        pooling: str = "mean",
        layer: int = -1,
        max_tokens: int = 77,
        pooled_width: int | None = None,
        context_width: int | None = None,
        tokenizer: str | None = None,
        standardize: bool | str = False,
        random_weights: bool = False,
        **options: Any,
    ) -> None:
        if pooling not in _POOLINGS:
            raise ValueError(f"pooling {pooling!r} is not one of {', '.join(_POOLINGS)}")
        stated = pooled_width if context_width is None else context_width
        super().__init__(
            width=described_width(find_folder(path, key=_KEY)) if stated is None else stated,
            max_tokens=max_tokens,
            owner=path,
            pooled_width=pooled_width,
            context_width=context_width,
            **options,
        )
        self.path = path
        self.pooling = pooling
        self.layer = layer
        self.tokenizer_path = tokenizer
        self.standardize = standardize
        self.random_weights = random_weights
        self._tokenizer: Any = None
        self._standardizer: Standardizer | None = None

    @property
    def identity(self) -> str:
        """Contents of the folder (not its name), layer, pooling, tokens, standardisation, precision."""
        folder = find_folder(self.path, key=_KEY)
        files = identifying_files(folder, self._tokenizer_folder(), weights=not self.random_weights)
        source = f"{read_config(folder).get('model_type', 'encoder')}-{fingerprint(files)}"
        parts = [source, f"layer{self.layer}", self.pooling, f"tokens{self.max_tokens}", self.dtype]
        if self.random_weights:
            parts.append("random")
        if self.standardize:
            parts.append(f"standard-{captions_digest(self._statistics_captions())}")
        return "/".join(["huggingface", *parts])

    def build(self) -> nn.Module:
        """The encoder with its weights; see `FrozenTextEncoder.build`."""
        folder = find_folder(self.path, key=_KEY)
        network = read_network(folder, random_weights=self.random_weights)
        depth = self._depth(network)
        if not -depth - 1 <= self.layer <= depth:
            raise ValueError(
                f"layer={self.layer}: {self.path} has {depth} layers; give -1 (its output) or 0 to {depth}"
            )
        stated = self.context_width
        check_widths(described_width(folder), pooled_width=stated, context_width=stated, owner=self.path)
        positions = read_config(folder).get("max_position_embeddings")
        if positions is not None and self.max_tokens > positions:
            raise ValueError(
                f"max_tokens={self.max_tokens}, but {self.path} has {positions} positions; "
                f"set text_encoder.max_tokens={positions} or less"
            )
        return network

    def prepare(self) -> None:
        """Measure the statistics that the features are standardised with."""
        if self.standardize:
            self._standardizer = Standardizer.measure(self._encode_caption, self._statistics_captions())

    def tokenize(self, caption: str) -> tuple[list[int], bool]:
        """Ids with the tokenizer's special tokens, which a caption that is too long keeps."""
        if self._tokenizer is None:
            self._tokenizer = read_tokenizer(self._tokenizer_folder())
        ids = self._tokenizer(caption, verbose=False)["input_ids"]
        truncated = len(ids) > self.max_tokens
        if truncated:
            ids = self._tokenizer(caption, truncation=True, max_length=self.max_tokens)["input_ids"]
        return ids or [self._empty_token()], truncated

    def encode_tokens(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Encode ids (N, n) long without padding: pooled (N, width) and hidden states (N, n, width)."""
        pooled, hidden = self._encode_raw(ids)
        if self._standardizer is None:
            return pooled, hidden
        return self._standardizer.to(hidden.device)(pooled, hidden)

    def _encode_raw(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        network: Any = self.network
        inner = self.layer not in (-1, self._depth(network))
        out = network(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=inner, return_dict=True)
        hidden = out.hidden_states[self.layer] if inner else out.last_hidden_state
        if inner and (norm := final_norm(network)) is not None:
            hidden = norm(hidden)
        hidden = hidden.float()
        if self.pooling == "mean":
            return hidden.mean(1), hidden
        return hidden[:, 0 if self.pooling == "cls" else -1], hidden

    def _encode_caption(self, caption: str) -> tuple[Tensor, Tensor]:
        return self._encode_raw(torch.tensor([self.tokenize(caption)[0]], device=self.device))

    def _statistics_captions(self) -> tuple[str, ...]:
        return captions_from(Path(self.standardize).expanduser()) if isinstance(self.standardize, str) else CAPTIONS

    def _tokenizer_folder(self) -> Path:
        if self.tokenizer_path is not None:
            return find_folder(self.tokenizer_path, key="text_encoder.tokenizer")
        folder = find_folder(self.path, key=_KEY)
        beside = folder.parent / "tokenizer"
        return beside if beside.is_dir() and not has_tokenizer(folder) else folder

    def _empty_token(self) -> int:
        """What stands for the empty caption where no special tokens are added: every text needs a valid token."""
        candidates = (self._tokenizer.eos_token_id, self._tokenizer.bos_token_id, self._tokenizer.pad_token_id)
        return next((token for token in candidates if token is not None), 0)

    @staticmethod
    def _depth(network: Any) -> int:
        return network.config.num_hidden_layers
