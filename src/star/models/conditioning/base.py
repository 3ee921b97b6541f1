"""The frozen, pre-trained text encoder: captions to condition, weights that nobody trains or saves."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from star.models.conditioning.captions import (
    check_captions,
    clean_caption,
    warn_truncated,
)
from star.models.conditioning.memo import FeatureMemo, Features
from star.models.conditioning.widths import check_widths
from star.types import Condition

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FrozenTextEncoder(nn.Module, ABC):
    """A pre-trained text encoder (STAR section 3.2: tau(y) and eta(y)).

    Its weights are read on first use or by `load()`, so that a configuration can be composed and a model counted
    without them. They are frozen, always in evaluation mode, always in `dtype` whatever autocast or the trainer's
    precision say, follow the module to its device, and are no part of the module tree: no optimiser,
    `state_dict()`, strict loading or data-parallel wrapper ever sees them.

    Captions of equal token count are encoded together and without padding, so that a caption's features don't depend
    on the captions beside it but for the last digit (5e-6 here): a matrix product may round differently when it has
    more rows. With `batch_invariant`, which may be set at any time, captions are encoded one by one and are the same
    to the bit in any batch; sampling wants that, training does not need it.

    Args:
        width: size of the hidden states and of the pooled feature.
        owner: whose size that is, for errors.
        pooled_width, context_width: the same size as a configuration states it; checked where given.
        max_tokens: how many tokens of a caption are used; the rest is cut, with one warning per process.
        dtype: `fp32`, `bf16` or `fp16`, what the encoder runs in; features are float32 in any case.
        pass_size: how many captions one forward pass takes at most.
        batch_invariant: encode captions one by one.
        memoize: keep each caption's features in main memory: 4 * (valid tokens + 1) * width bytes a caption.
        memo_limit: how many captions are kept; the least recently used goes first.

    Raises:
        ValueError: for a dtype that isn't known, sizes below 1, or a stated size that is wrong.

    """

    trainable = False
    _anchor: Tensor

    def __init__(
        self,
        *,
        width: int,
        max_tokens: int,
        owner: str,
        pooled_width: int | None = None,
        context_width: int | None = None,
        dtype: str = "fp32",
        pass_size: int = 64,
        batch_invariant: bool = False,
        memoize: bool = False,
        memo_limit: int = 20_000,
    ) -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is not one of {sorted(DTYPES)}")
        if min(width, max_tokens, pass_size) < 1:
            raise ValueError(
                f"sizes must be positive, got width {width}, max_tokens {max_tokens}, pass_size {pass_size}"
            )
        check_widths(width, pooled_width=pooled_width, context_width=context_width, owner=owner)
        self.pooled_width = width
        self.context_width = width
        self.max_tokens = max_tokens
        self.dtype = dtype
        self.pass_size = pass_size
        self.batch_invariant = batch_invariant
        self.memo = FeatureMemo(memo_limit) if memoize else None
        # A tuple hides the weights from the module tree; the anchor is how the module knows where it was moved to.
        self._held: tuple[nn.Module, ...] = ()
        self.register_buffer("_anchor", torch.empty(0), persistent=False)
        self.train(False)

    @property
    @abstractmethod
    def identity(self) -> str:
        """What decides the features, for caches and model cards: encoder, weights, layer, tokenizer, precision."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The pre-trained network with its weights, on the CPU.

        Raises:
            FileNotFoundError: when the weights are missing; names the file, its source, and the key to set.
            ValueError: when the weights are there but don't fit.

        """

    @abstractmethod
    def tokenize(self, caption: str) -> tuple[list[int], bool]:
        """Token ids of a cleaned caption, 1 to `max_tokens` of them, no padding; and whether some were cut."""

    @abstractmethod
    def encode_tokens(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Encode ids (N, n) long without padding: pooled (N, width) and hidden states (N, n, width)."""

    @property
    def device(self) -> torch.device:
        """Where the encoder runs."""
        return self._anchor.device

    @property
    def network(self) -> nn.Module:
        """The pre-trained network itself, read on first use."""
        return self.load()._held[0]

    def load(self) -> Self:
        """Read the weights now instead of at the first call; see `build` for what can go wrong."""
        if not self._held:
            with torch.inference_mode(False), torch.no_grad():
                network = self.build().requires_grad_(False).eval()
                self._held = (network.to(self.device, DTYPES[self.dtype]),)
                try:
                    self.prepare()
                except Exception:
                    self._held = ()  # else a second call would go on without what prepare() measures
                    raise
            logger.info("text encoder %s on %s", self.identity, self.device)
        return self

    def prepare(self) -> None:
        """Called once when the network has its weights and place, for what must be measured on it."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever the parent does."""
        del mode
        return super().train(False)

    def forward(self, captions: Sequence[str]) -> Condition:
        """Encode captions (B strings): pooled (B, width), context (B, max_tokens, width), both float32.

        `Condition.trim()` cuts the padding that no caption of the batch uses.
        """
        captions = check_captions(captions)
        self.load()
        # Features made during validation may be needed for training: inference tensors would not do.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            known = self._features(list(dict.fromkeys(captions)))
            return self._assemble([known[caption] for caption in captions])

    def _features(self, captions: list[str]) -> dict[str, Features]:
        """Features of each (different) caption, from the memo where it has them."""
        if self.memo is None:
            return self._encode(captions)
        known: dict[str, Features] = {}
        for caption in captions:
            if (features := self.memo.get((caption, self.batch_invariant))) is not None:
                known[caption] = features
        for caption, features in self._encode([caption for caption in captions if caption not in known]).items():
            known[caption] = features.cpu()
            self.memo.put((caption, self.batch_invariant), known[caption])
        return known

    def _encode(self, captions: list[str]) -> dict[str, Features]:
        """Features of each caption, those of equal token count in common passes."""
        by_length: dict[int, list[tuple[str, list[int]]]] = defaultdict(list)
        for caption in captions:
            line, cut = clean_caption(caption, self.max_tokens)
            ids, truncated = self.tokenize(line)
            if cut or truncated:
                warn_truncated(caption, self.max_tokens)
            by_length[len(ids)].append((caption, ids))
        found: dict[str, Features] = {}
        size = 1 if self.batch_invariant else self.pass_size
        for group in by_length.values():
            for start in range(0, len(group), size):
                chunk = group[start : start + size]
                pooled, hidden = self.encode_tokens(torch.tensor([ids for _, ids in chunk], device=self.device))
                for row, (caption, _) in enumerate(chunk):
                    found[caption] = Features(pooled[row].float(), hidden[row].float())
        return found

    def _assemble(self, features: list[Features]) -> Condition:
        """One condition of many captions' features; the context is padded with zeros to `max_tokens`."""
        context = pad_sequence([one.context for one in features], batch_first=True)  # (B, longest, width)
        context = F.pad(context, (0, 0, 0, self.max_tokens - context.shape[1]))
        lengths = torch.tensor([len(one.context) for one in features])
        mask = torch.arange(self.max_tokens) < lengths[:, None]  # (B, max_tokens)
        pooled = torch.stack([one.pooled for one in features])
        return Condition(pooled.to(self.device), context.to(self.device), mask.to(self.device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for network in getattr(self, "_held", ()):
            # The place only: a trainer that turns the model into bf16 doesn't change the encoder's precision.
            network.to(self.device)
        return self

    def extra_repr(self) -> str:
        """What `print` shows."""
        return (
            f"width={self.context_width}, max_tokens={self.max_tokens}, dtype={self.dtype}, loaded={bool(self._held)}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave the weights out of copies and pickles too: whoever gets one reads them again."""
        return {**self.__dict__, "_held": ()}
