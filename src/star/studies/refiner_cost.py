"""What revealing late scales in steps costs: seconds and operations of the refiner, beside the generator's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from star.models.refiner import Refiner, first_refined
from star.sampling.causal_driven import CausalDriven
from star.sampling.decoder import ScaleWiseDecoder
from star.sampling.guidance import ClassifierFreeGuidance
from star.types import Condition
from star.utils.cli import compose, plain
from star.utils.instantiate import instantiate

ALLOWANCE = 1.3
TEXT_TOKENS = (20, 2)  # of a caption, and of the empty one


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    operations: int = sdpa_flop_count(query, key, value)
    return operations


# PyTorch's counter leaves this one out
ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


def measure_cost(
    *,
    model: str = "d16",
    stage: str = "256",
    steps: int = 8,
    scales: int = 2,
    repeats: int = 3,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Draw one guided picture with random weights and say where the time went.

    Args:
        model: an option of conf/model.
        stage: an option of conf/stage.
        steps: of each refined scale.
        scales: how many scales are refined, the last ones.
        repeats: measured runs; each part's fastest counts.
        overrides: more overrides of train.yaml.

    Returns:
        `seconds` and `operations` by part; `ratio`, all that refined scales do after the generator over everything
        else; `expected`, the same ratio in operations; `bar`, that times 1.3.

    """
    decoder, refiner, condition, empty = build([f"stage={stage}", f"model={model}", *overrides], steps, scales)
    clock = Clock(decoder, refiner, first=first_refined(decoder.schedule, -scales))
    runs = []
    for run in range(repeats + 1):
        seconds = clock.run(lambda: decoder(condition, empty, [0]))
        runs += [seconds] if run else []
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        operations = clock.run(lambda: decoder(condition, empty, [0]), counter.get_total_flops)
    fastest = {part: min(run[part] for run in runs) for part in runs[0]}
    expected = operations["refiner"] / operations["generator"]
    ratio = (fastest["refiner"] + fastest["drawing"]) / fastest["generator"]
    return {
        "model": model,
        "stage": stage,
        "refined": [f"{h}x{w}" for h, w in decoder.schedule.sizes[-scales:]],
        "steps": steps,
        "seconds": fastest,
        "operations": operations,
        "ratio": ratio,
        "ratio_of_the_network_alone": fastest["refiner"] / fastest["generator"],
        "expected": expected,
        "bar": ALLOWANCE * expected,
        "within": ratio <= ALLOWANCE * expected,
        "threads": torch.get_num_threads(),
    }


def build(overrides: Sequence[str], steps: int, scales: int) -> tuple[ScaleWiseDecoder, Refiner, Condition, Condition]:
    """A decoder with random weights, and texts for one picture."""
    torch.manual_seed(0)
    config = plain(compose("train", ["task=sampler", *overrides]))["module"]
    transformer, tokenizer, refiner, schedule = (
        instantiate(config[part]) for part in ("transformer", "tokenizer", "refiner", "schedule")
    )
    for part in (transformer, tokenizer, refiner):
        part.eval().requires_grad_(False)
    sampler = CausalDriven(steps=steps, first_scale=-scales)
    decoder = ScaleWiseDecoder(
        transformer, tokenizer, schedule, sampler=sampler, guidance=ClassifierFreeGuidance(4.0), refiner=refiner
    )
    return decoder, refiner, *(_text(config["transformer"], count) for count in TEXT_TOKENS)


def _text(sizes: Mapping[str, Any], count: int) -> Condition:
    pooled = torch.randn(1, sizes["pooled_width"])
    if sizes["context_width"] is None:
        return Condition(pooled)
    return Condition(pooled, torch.randn(1, count, sizes["context_width"]), torch.ones(1, count, dtype=torch.bool))


class Clock:
    """Attributes what passes (seconds, or operations) to parts of a drawing.

    `refiner` is the network in all of its steps; `drawing` all else that the sampler does at refined scales: filters,
    random numbers, guidance; `generator` everything else, the plain sampling of the coarse scales included.

    Args:
        decoder: whose sampler is watched.
        refiner: watched.
        first: the first refined scale.

    """

    def __init__(self, decoder: ScaleWiseDecoder, refiner: Refiner, *, first: int) -> None:
        self.first = first
        self.spent = {"refiner": 0.0, "sampler": 0.0}
        self.now: Callable[[], float] = time.perf_counter
        watched: Any = refiner
        watched.step = self._watch("refiner", refiner.step)
        sampler = decoder.sampler
        late = self._watch("sampler", sampler)
        decoder.sampler = lambda *given: late(*given) if given[3] >= self.first else sampler(*given)

    def run(self, draw: Callable[[], Any], now: Callable[[], float] = time.perf_counter) -> dict[str, float]:
        """What each part took of a drawing."""
        self.now, self.spent = now, dict.fromkeys(self.spent, 0.0)
        start = now()
        draw()
        total, spent = now() - start, self.spent
        return {
            "generator": total - spent["sampler"],
            "refiner": spent["refiner"],
            "drawing": spent["sampler"] - spent["refiner"],
        }

    def _watch(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*given: Any) -> Any:
            start = self.now()
            result = call(*given)
            self.spent[part] += self.now() - start
            return result

        return watched
