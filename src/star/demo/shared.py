"""`python -m star.demo.shared N COMMAND ...`: Python runs the command in N processes, as torchrun would.

Torchrun itself ends with pages of its own traces after ctrl-C, or after an error that the command has explained.
"""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def main(arguments: Sequence[str]) -> int:
    """Run the command; its exit code, 128 and the signal's number after a signal."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    count, *words = arguments
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(count),
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
    )
    try:
        elastic_launch(config, sys.executable)(*words)
    except SignalException as signalled:
        return 128 + int(signalled.sigval)
    except ChildFailedError as failed:
        _, first = failed.get_first_failure()
        return max(first.exitcode, 1)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
