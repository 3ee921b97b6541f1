"""`python -m star.bench sample|decode|train|text [key=value ...]`, from the project's root."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

HELP = f"""{__doc__}

  sample   text features to pixels        decode   f_hat to pixels
  train    forward, loss and backward of the transformer
  text     captions to features (text_encoder.weights=null needs no weights)

Random weights and made-up text features (77 tokens, 20 of them valid, 2 for the empty text) are used, so that nothing
has to be there. Totals include decoding and leave reading the text out.

  batch=1              pictures at a time
  dtype=fp32           fp32, bf16, fp16: what autocast computes in
  repeats=5 warmup=1   the median counts, least and most are shown
  threads=N            of the CPU
  device=auto          auto, cpu, cuda
  format=text          json writes one object to the terminal: cpu_seconds.total, wall_seconds.total and the same by
                       part, peak_memory_gib
  out=FILE.json        write that object into a file
  against=FILE.json    compare with an earlier run
  versus="dtype=bf16 speed=plain"    measure a second setting, in turns with the first, and compare
  versus=implementation=reference    the same work by the steps of the released code (sample, train)
  versus=implementation=products     its matrix products alone, in their own shapes: the floor (sample, train)
  KEY=VALUE            anything of conf/: model=d16 stage=256 mask=markov sampling.guidance.off_after=-3,
                       speed=default|plain|small_card|graphs speed.weights=cast ...
"""
log = logging.getLogger("bench")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        sys.stdout.write(HELP)
        return
    prepare(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from star.utils.cli import readable_errors

    with readable_errors():
        run(arguments)


def prepare(arguments: Sequence[str]) -> None:
    """What has to be said before PyTorch is loaded: threads that wait must not spin, for CPU seconds to mean work."""
    os.environ["OMP_WAIT_POLICY"] = "passive"
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "threads" and value.isdigit():
            os.environ["OMP_NUM_THREADS"] = value


def run(arguments: Sequence[str]) -> None:
    """Measure what the words ask for."""
    import torch

    from star.bench import report
    from star.bench.measure import measure
    from star.bench.settings import parse

    request = parse(arguments)
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    if request.against is not None:
        report.read(request.against)  # better now than after minutes
    record = report.compared(measure(request), request.against)
    if request.out is not None:
        report.write(record, request.out)
    sys.stdout.write(report.as_json(record) if request.format == "json" else report.as_text(record))


if __name__ == "__main__":
    main()
