"""A small text encoder that is trained with the generator and saved in its checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from star.models.conditioning.captions import (
    check_captions,
    clean_caption,
    warn_truncated,
)
from star.models.conditioning.widths import check_widths
from star.models.conditioning.words import PAD, WordTokenizer
from star.types import Condition

if TYPE_CHECKING:
    from collections.abc import Sequence


class WordTransformer(nn.Module):
    """A bidirectional transformer over hashed words; no file is needed.

    The context is as long as the batch's longest caption. With `batch_invariant`, which may be set at any time, it has
    `max_tokens`, and captions are encoded one by one: they are the same to the bit in any batch.

    Args:
        width: size of the hidden states and of the pooled feature.
        depth: number of blocks.
        num_heads: attention heads a block.
        max_tokens: begin, words and end of a caption; the rest is cut, with one warning per process.
        vocabulary_size: rows of the embedding table that unlisted words share; see `WordTokenizer`.
        num_hashes: how many of these rows make a word.
        kernel: so many words in a row are mixed by a convolution before the first block, so that a noun knows its
            adjective from the first step on. 1 leaves that to attention, which found no neighbours in the demo's 1,100
            steps: such a training ends with a bag of words, for which a red circle and a blue square are a blue circle
            and a red square.
        words: words with rows of their own.
        batch_invariant: encode captions one by one.
        pooled_width, context_width: `width` again, as the rest of a configuration reads it; checked where given.

    Raises:
        ValueError: for sizes that don't fit.

    """

    trainable = True

    def __init__(
        self,
        *,
        width: int = 256,
        depth: int = 2,
        num_heads: int = 4,
        max_tokens: int = 32,
        vocabulary_size: int = 4096,
        num_hashes: int = 2,
        kernel: int = 1,
        words: Sequence[str] = (),
        batch_invariant: bool = False,
        pooled_width: int | None = None,
        context_width: int | None = None,
    ) -> None:
        super().__init__()
        check_widths(width, pooled_width=pooled_width, context_width=context_width, owner="this encoder")
        if min(width, num_heads) < 1 or width % num_heads:
            raise ValueError(f"width {width} is not divisible by num_heads {num_heads}")
        if depth < 1 or max_tokens < 3:
            raise ValueError(f"needs depth >= 1 and max_tokens >= 3 (begin, a word, end), got {depth} and {max_tokens}")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel is an odd number of words, 1 for none, got {kernel}")
        self.pooled_width = width
        self.context_width = width
        self.max_tokens = max_tokens
        self.kernel = kernel
        self.batch_invariant = batch_invariant
        self.words = WordTokenizer(num_buckets=vocabulary_size, num_hashes=num_hashes, words=words)
        mixed = f"/kernel{kernel}" if kernel > 1 else ""
        self.identity = (
            f"word_transformer/width{width}/depth{depth}/heads{num_heads}/tokens{max_tokens}{mixed}/"
            f"{self.words.identity}"
        )
        self.embedding = nn.Embedding(self.words.size, width, padding_idx=PAD)
        self.position = nn.Parameter(torch.empty(max_tokens, width))
        self.blocks = nn.ModuleList(
            WordBlock(width, num_heads=num_heads, kernel=1 if layer else kernel) for layer in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.reset_parameters()

    @property
    def device(self) -> torch.device:
        """Where the encoder runs."""
        return self.position.device

    def reset_parameters(self) -> None:
        """Words and places large, all else normal with deviation 0.02; deep blocks add less.

        Words that start at 0.02 grow sixfold in 1,100 steps of the demo, most of it into one direction: left and right
        then differ by 0.3 of their length, red and blue, which matter sooner, by 1.4. At 0.2 all differ by more than 1.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight, std=0.2)
        nn.init.normal_(self.position, std=0.1)
        with torch.no_grad():
            self.embedding.weight[PAD].zero_()
            for name, weight in self.blocks.named_parameters():
                if name.endswith(("out.weight", "mlp.2.weight")):
                    weight.div_((2 * len(self.blocks)) ** 0.5)

    def forward(self, captions: Sequence[str]) -> Condition:
        """Encode captions (B strings): pooled (B, width), at the begin token, and context (B, T, width)."""
        rows, mask = self._tokenize(check_captions(captions))  # (B, T, num_hashes), (B, T)
        if self.batch_invariant:
            x = torch.cat([self._mix(*one) for one in zip(rows.split(1), mask.split(1), strict=True)])
        else:
            x = self._mix(rows, mask)
        return Condition(x[:, 0], x, mask)

    def _mix(self, rows: Tensor, mask: Tensor) -> Tensor:
        """Hidden states (B, T, width)."""
        x = self.embedding(rows).sum(2) + self.position[: rows.shape[1]]
        bias = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, float("-inf"))
        for block in self.blocks:
            x = block(x, mask, bias[:, None, None])
        return self.norm(x)

    def _tokenize(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        encoded = []
        for caption in captions:
            line, cut = clean_caption(caption, self.max_tokens)
            tokens, truncated = self.words.encode(line, self.max_tokens)
            if cut or truncated:
                warn_truncated(caption, self.max_tokens)
            encoded.append(tokens)
        length = self.max_tokens if self.batch_invariant else max(map(len, encoded))
        nothing = (PAD,) * self.words.num_hashes
        rows = torch.tensor([[*tokens, *(nothing,) * (length - len(tokens))] for tokens in encoded])
        mask = torch.arange(length) < torch.tensor([len(tokens) for tokens in encoded])[:, None]
        return rows.to(self.device), mask.to(self.device)


class WordBlock(nn.Module):
    """Pre-norm attention over all words, then an MLP; a `kernel` above 1 convolves neighbours first."""

    def __init__(self, width: int, *, num_heads: int, kernel: int = 1) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.neighbours = None if kernel == 1 else nn.Conv1d(width, width, kernel, padding=kernel // 2)
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
        """Mix words (B, T, C); `mask` (B, T) is True on words, `bias` (B, 1, 1, T) is -inf on padding."""
        if self.neighbours is not None:
            x = x + self.neighbours((x * mask[..., None]).mT).mT
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        # Plain products: captions are short, and fused attention's backward pass is slow in bf16 on CPUs.
        weights = (q @ k.mT * q.shape[-1] ** -0.5 + bias).softmax(-1)  # (B, heads, T, T)
        x = x + self.out((weights.to(v.dtype) @ v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_mlp(x))
