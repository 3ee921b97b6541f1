"""What lies in a GPU's memory during a training step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from star.plan.activations import Step, encoding_bytes, kept_bytes, passing_bytes
from star.plan.models import Models, count, matrices
from star.utils.devices import GIB

FLOAT = 4
# CUDA's own context and libraries, and what an allocator can't use
CONTEXT = int(1.5 * GIB)
LOST = 0.05


@dataclass(frozen=True)
class Spread:
    """How a model lies on the devices.

    Attributes:
        strategy: `single`, `ddp` or `fsdp`.
        devices: of the whole training.
        shards: over how many of them one model is spread.
        buckets: gradients lie in memory twice, as DDP keeps them unless they are views of its buckets.

    """

    strategy: str
    devices: int
    shards: int = 1
    buckets: bool = False

    def __str__(self) -> str:
        """For people."""
        if self.strategy == "fsdp" and self.shards < self.devices:
            return f"fsdp, {self.devices // self.shards} x {self.shards}"
        return self.strategy


@dataclass(frozen=True)
class Memory:
    """Bytes on each device, by what they hold.

    Attributes:
        weights: of what is trained; with FSDP a part of them, and the blocks that are gathered.
        narrow_copies: 16-bit copies of weights that autocast makes.
        gradients: of the weights.
        optimizer: moments.
        averages: the EMA.
        text_encoder: a frozen one.
        tokenizer: frozen.
        activations: of the whole batch, at the worst moment of a step.
        reserve: CUDA's context, and what fragmentation costs.

    """

    weights: int
    narrow_copies: int
    gradients: int
    optimizer: int
    averages: int
    text_encoder: int
    tokenizer: int
    activations: int
    reserve: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


def per_picture(models: Models, config: Mapping[str, Any], *, half: bool, device: str, cached: bool) -> int:
    """Bytes of each picture of a batch: when it is encoded, or when the generator learns from it."""
    text_tokens = models.text.max_tokens
    step = Step(sum(models.counts), text_tokens, half, device, recompute=every(config))
    learning = kept_bytes(models.transformer, step) + passing_bytes(models.transformer, step)
    size = models.schedule.sizes[-1]
    return max(learning, 0 if cached else encoding_bytes(models.tokenizer.encoder, size, half=half))


def every(config: Mapping[str, Any]) -> int:
    """Every how many blocks one is computed again, as `activation_checkpointing` says."""
    given = config.get("activation_checkpointing", "none")
    return given if isinstance(given, int) else {"none": 0, "full": 1}[given]


def fixed(models: Models, config: Mapping[str, Any], spread: Spread, *, half: bool, cached_text: bool) -> Memory:
    """What doesn't depend on the batch; activations and the lost share of the memory are still 0 and added later."""
    trained = count(models.transformer) + (models.text.parameters or 0) * models.text.trainable
    block = count(models.transformer.blocks[0])
    narrow = 2 if half else FLOAT
    sharded = spread.strategy == "fsdp"
    part = -(-trained * FLOAT // spread.shards)
    # FSDP gathers a block while the one before is still there; head, embeddings and levels stay as they are gathered
    gathered = 2 * block * narrow + _outside(models) * FLOAT if sharded else 0
    reduced = 2 * block * FLOAT if sharded else 0
    return Memory(
        weights=part + gathered,
        narrow_copies=count(models.transformer) * 2 if half and not sharded else 0,
        gradients=part * (2 if spread.buckets else 1) + reduced,
        optimizer=-(-moments(models, config["optim"], trained) // spread.shards),
        averages=part if config["callbacks"].get("ema") else 0,
        text_encoder=0
        if models.text.trainable or cached_text
        else (models.text.parameters or 0) * models.text.bytes_each,
        tokenizer=count(models.tokenizer) * FLOAT,
        activations=0,
        reserve=CONTEXT,
    )


def moments(models: Models, optim: Mapping[str, Any], trained: int) -> int:
    """Bytes that an optimiser keeps of all trained weights."""
    kind = str(optim["_target_"]).rpartition(".")[2]
    if kind == "AdamW8bit":
        return 2 * trained
    if kind == "MuonAdamW":  # one moment for matrices, two for the rest
        return 2 * FLOAT * trained - FLOAT * matrices(models.transformer, optim["blocks"])
    return 2 * FLOAT * trained


def _outside(models: Models) -> int:
    return count(models.transformer) - count(models.transformer.blocks)


def with_batch(memory: Memory, each: int, batch: int) -> Memory:
    """The same with a batch's activations, and what is lost of all of it."""
    full = Memory(**asdict(memory) | {"activations": each * batch})
    return Memory(**asdict(full) | {"reserve": full.reserve + round(LOST * full.total)})


def largest_batch(memory: Memory, each: int, available: int) -> int:
    """The most pictures that fit; 0 when none does."""
    low, high = 0, max(1, available // max(each, 1))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if with_batch(memory, each, middle).total <= available else (low, middle - 1)
    return low
