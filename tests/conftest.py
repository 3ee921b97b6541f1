"""Small models that several tests share."""

from __future__ import annotations

import multiprocessing
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from star.models.tokenizer.autoencoder import Decoder, Encoder
from star.models.tokenizer.quantizer import MultiScaleVQ
from star.models.tokenizer.residual_conv import ResidualConv
from star.models.tokenizer.tokenizer import MultiScaleTokenizer
from star.models.transformer import STARTransformer
from star.nn.masks import ScaleMask
from star.nn.position import Rotary2D
from star.schedule import ScaleSchedule
from star.types import Condition


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def counted() -> Callable[[Callable[[], object]], int]:
    """Floating-point operations that PyTorch's counter sees; of fused attention on a CPU it knows nothing by itself."""

    def forward(q: torch.Size, k: torch.Size, v: torch.Size, *rest: Any, **others: Any) -> int:
        return sdpa_flop_count(q, k, v)

    def backward(grad: torch.Size, q: torch.Size, k: torch.Size, v: torch.Size, *rest: Any, **others: Any) -> int:
        """Four products; the kernel's own repetition of one of the forward pass is no work of the model's."""
        return 2 * sdpa_flop_count(q, k, v)

    known = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: forward,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }

    def count(run: Callable[[], object]) -> int:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=known) as counter:
            run()
        return counter.get_total_flops()

    return count


@pytest.fixture
def start() -> Iterator[Callable[..., list[Any]]]:
    """Starts a function in forked processes, several as ranks that find each other, and returns them."""
    processes: list[Any] = []

    def start(function: Callable[[], Any], *, count: int = 1, **environment: str) -> list[Any]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])

        def work(rank: int) -> None:
            os.environ.update(environment)
            if count > 1:
                ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
                os.environ.update(ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
            function()

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)  # of forks beside threads, since Python 3.12
            new = [multiprocessing.get_context("fork").Process(target=work, args=(rank,)) for rank in range(count)]
            for process in new:
                process.start()
        processes.extend(new)
        return new

    yield start
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()


@pytest.fixture
def schedule() -> ScaleSchedule:
    return ScaleSchedule(((1, 1), (2, 2), (2, 3), (4, 4)))


@pytest.fixture
def tokenizer() -> MultiScaleTokenizer:
    """Factor 2, 32 codes of width 8, with codes that differ from one another."""
    sizes = {"channels": 8, "multipliers": (1, 2), "num_res_blocks": 1, "code_width": 8, "groups": 4}
    quantizer = MultiScaleVQ(32, 8, phi=ResidualConv(8))
    torch.nn.init.normal_(quantizer.codebook.weight)
    return MultiScaleTokenizer(encoder=Encoder(**sizes), decoder=Decoder(**sizes), quantizer=quantizer).eval()


@pytest.fixture
def build_transformer(schedule: ScaleSchedule) -> Callable[..., STARTransformer]:
    """A small transformer with weights large enough for every branch to matter."""

    def build(**changes: object) -> STARTransformer:
        arguments: dict[str, object] = {
            "depth": 2,
            "width": 32,
            "num_heads": 4,
            "codebook_size": 32,
            "code_width": 8,
            "pooled_width": 12,
            "context_width": 10,
            "num_levels": len(schedule),
            "position": Rotary2D(),
            "mask": ScaleMask(),
        }
        model = STARTransformer(**(arguments | changes)).eval()  # type: ignore[arg-type]
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        return model

    return build


@pytest.fixture
def condition() -> Condition:
    """Three texts of 3, 5 and 1 tokens."""
    mask = torch.arange(5) < torch.tensor([[3], [5], [1]])
    return Condition(torch.randn(3, 12), torch.randn(3, 5, 10), mask)


@pytest.fixture
def empty() -> Condition:
    """The text without words: two tokens."""
    return Condition(torch.randn(1, 12), torch.randn(1, 2, 10), torch.ones(1, 2, dtype=torch.bool))
