"""A floor for the same work, to be timed beside it: its matrix products alone, `versus=implementation=products`.

Each has its own shape, over the model's weights, in the working precision, for drawing in the order that suits the
machine. What is between them in the transformer is left out: norms, rotations, activations, sums, casts, filters, the
drawing of tokens, the quantiser. Attention in drawing is PyTorch's fused kernel, softmax and all; in training it is the
six products that it can't do without, of what the mask lets be seen. The decoder runs as it is. So it is a floor for
work with these libraries' kernels and this decoder, not for all work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.bench.settings import Settings
from star.bench.stopwatch import Stopwatch
from star.bench.work import Sample, Train, Work, halves, text_tokens
from star.models.transformer import STARTransformer
from star.nn.block import Block
from star.nn.products import product
from star.nn.weights import hold
from star.objectives.train_tokens import counts
from star.sampling.precision import PRECISIONS, autocast
from star.utils.instantiate import instantiate


class Numbers:
    """Random tensors, each made once.

    Args:
        device: where.

    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._made: dict[tuple[torch.dtype, int, tuple[int, ...]], Tensor] = {}

    def __call__(self, *shape: int, kind: torch.dtype, number: int = 0) -> Tensor:
        """The `number`th one of this shape and dtype."""
        key = (kind, number, shape)
        if key not in self._made:
            self._made[key] = torch.randn(shape, device=self.device).to(kind)
        return self._made[key]


class ProductsSample(Sample):
    """From text features to pixels: products, attention's kernels and the decoder."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        model, schedule = self.pipeline.transformer, self.pipeline.schedule
        self.start = start_of(model)
        self.kind = PRECISIONS[settings.dtype]
        hold(nn.ModuleList(model.blocks), "auto", self.kind)
        self.numbers = Numbers(self.device)
        self.f_hat = torch.zeros_like(self.pipeline.tokenizer.quantizer.start(settings.batch, schedule))

    @torch.no_grad()
    def run(self) -> None:
        """Multiply what a batch takes, and decode."""
        schedule = self.pipeline.schedule
        for k, length in enumerate(schedule.lengths):
            rows = halves(self.pipeline, k) * self.settings.batch
            self.ends(rows, length, first=k == 0)
            seen = schedule.offsets[k + 1] - schedule.offsets[self.pipeline.transformer.mask.first_visible(k)]
            for block in self.pipeline.transformer.blocks:
                assert isinstance(block, Block)
                self.linear(block, rows, length, first=k == 0)
                self.attention(block, rows, length, seen)
        with autocast(self.settings.dtype, self.device):
            self.pipeline.decoder.paint(self.f_hat)

    def linear(self, block: Block, rows: int, length: int, *, first: bool) -> None:
        """A block's linear layers; those for the text at the first scale."""
        for layer in layers_of(block):
            F.linear(self.numbers(rows * length, layer.in_features, kind=self.kind), layer.weight)
        cross = block.cross_attention
        if first and cross is not None:
            valid = rows * text_tokens(self.pipeline.transformer)
            F.linear(self.numbers(valid, cross.kv.in_features, kind=self.kind), cross.kv.weight)

    def attention(self, block: Block, rows: int, length: int, seen: int) -> None:
        """A block's attention to what is drawn and to the text."""
        heads = block.attention.num_heads
        width = block.attention.out.in_features // heads
        keys = (seen,) if block.cross_attention is None else (seen, text_tokens(self.pipeline.transformer))
        q = self.numbers(rows, heads, length, width, kind=self.kind)
        for count in keys:
            k, v = (self.numbers(rows, heads, count, width, kind=self.kind, number=n) for n in (1, 2))
            F.scaled_dot_product_attention(q, k, v, scale=1.0)

    def ends(self, rows: int, length: int, *, first: bool) -> None:
        """What is before and behind the blocks, in fp32."""
        model = self.pipeline.transformer
        before = (self.start, rows) if first else (model.embed, rows * length)
        for layer, count in (before, (model.head.logits, rows * length)):
            product(self.numbers(count, layer.in_features, kind=torch.float32), layer.weight.float())

    @contextmanager
    def watched(self, watch: Stopwatch) -> Iterator[None]:
        """The kinds of products."""
        with ExitStack() as stack:
            for method in ("linear", "attention", "ends"):
                stack.enter_context(watch.calls(self, method, method))
            stack.enter_context(watch.calls(self.pipeline.decoder, "paint", "decoder"))
            yield


class ProductsTrain(Train):
    """Forward and backward of the transformer: three products of a linear layer, two of one whose input is frozen.

    Attention has six.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.start = start_of(self.model)
        if self.execution.compile:
            raise ValueError(
                "nothing is between products that could be compiled: implementation=products compile=false"
            )
        self.kind = PRECISIONS[settings.dtype]
        self.numbers = Numbers(self.device)
        kept = counts(instantiate(self.config["train_tokens"]), self.schedule)
        self.tokens = sum(kept)
        self.spans = list(self.model.mask.visibility(self.schedule, kept).spans())
        self.own = kept[0] if self.schedule.levels[0] == 0 else 0
        self.narrow = {layer: layer.weight.detach().to(self.kind) for layer in linear_layers(self.model)}

    @torch.no_grad()
    def run(self) -> None:
        """Multiply what a step takes."""
        self.ends()
        for block in self.model.blocks:
            assert isinstance(block, Block)
            self.linear(block)
            self.attention(block)

    def linear(self, block: Block) -> None:
        """A block's linear layers, the text's among them."""
        batch = self.settings.batch
        for layer in layers_of(block):
            self._multiply(self.narrow[layer], batch * self.tokens)
        if block.cross_attention is not None:
            self._multiply(self.narrow[block.cross_attention.kv], batch * text_tokens(self.model), frozen=True)

    def attention(self, block: Block) -> None:
        """Scores, mixture, and the gradients of both factors of both; scale by scale, and to the text."""
        width = block.attention.out.in_features // block.attention.num_heads
        pairs = [(i.stop - i.start, j.stop - j.start if isinstance(j, slice) else len(j)) for i, j in self.spans]
        if block.cross_attention is not None:
            pairs.append((self.tokens, text_tokens(self.model)))
        for length, seen in pairs:
            rows = self.settings.batch, block.attention.num_heads
            q = self.numbers(*rows, length, width, kind=self.kind)
            k, v = (self.numbers(*rows, seen, width, kind=self.kind, number=n) for n in (1, 2))
            scores = q @ k.transpose(-1, -2)
            of_scores = (scores @ v) @ v.transpose(-1, -2)
            of_scores @ k, of_scores.transpose(-1, -2) @ q, scores.transpose(-1, -2) @ q

    def ends(self) -> None:
        """What is before and behind the blocks, in fp32."""
        batch, model = self.settings.batch, self.model
        self._multiply(model.head.logits.weight, batch * self.tokens)
        self._multiply(model.embed.weight, batch * (self.schedule.total - self.own), frozen=True)
        self._multiply(self.start.weight, batch, frozen=True)

    def _multiply(self, weight: Tensor, rows: int, *, frozen: bool = False) -> None:
        """The product, the gradient of its weight and, unless the input is frozen, that of its input."""
        x, grad = (self.numbers(rows, side, kind=weight.dtype) for side in reversed(weight.shape))
        product(x, weight)
        torch.mm(grad.t(), x)
        if not frozen:
            product(grad, weight.t())

    @contextmanager
    def watched(self, watch: Stopwatch) -> Iterator[None]:
        """The kinds of products."""
        with ExitStack() as stack:
            for method in ("linear", "attention", "ends"):
                stack.enter_context(watch.calls(self, method, method))
            yield


def start_of(model: STARTransformer) -> nn.Linear:
    """The layer that makes the start token.

    Raises:
        ValueError: for a model with adaptive norms, which has none, and products that aren't among these.

    """
    if not isinstance(model.start, nn.Linear):
        raise ValueError("implementation=products multiplies for models of texts: leave model.adaptive_norm at none")
    return model.start


def layers_of(block: Block) -> list[nn.Linear]:
    """A block's linear layers that every token of a picture goes through."""
    layers = [block.attention.qkv, block.attention.out, block.feed_forward.inner, block.feed_forward.out]
    cross = block.cross_attention
    return layers if cross is None else [*layers, cross.q, cross.out]


def linear_layers(model: STARTransformer) -> list[nn.Linear]:
    """All linear layers of the blocks."""
    return [layer for layer in nn.ModuleList(model.blocks).modules() if isinstance(layer, nn.Linear)]


PRODUCTS: dict[str, type[Work]] = {"sample": ProductsSample, "train": ProductsTrain}
