"""The process of `against` that runs the tasks with the eddecode of one checkout.

It uses public names of eddecode only, so that it runs with any version that has them. Requests come as lines of JSON on
standard input, and each is answered by one line: {"pair": ["130M", "bf16"]} loads a pair, {"task": "T1", "times": 3}
runs a task of it. `benchmarks` itself always comes from the checkout that started the process.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


class Worker:
    """Runs tasks on one pair at a time.

    Args:
        checkout: where eddecode is imported from.
        threads: of torch.
        cpu_time: measure processor time (of all threads) instead of wall-clock time.
    """

    def __init__(self, checkout: Path, threads: int, cpu_time: bool) -> None:
        sys.path[:0] = [str(checkout), str(checkout / "kernels")]
        import torch
        from transformers.utils import logging

        import eddecode

        if not Path(eddecode.__file__).resolve().is_relative_to(checkout):
            raise ImportError(f"eddecode was imported from {eddecode.__file__}, expected it below {checkout}")
        torch.set_num_threads(threads)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self._clock = time.process_time if cpu_time else time.perf_counter
        self._pair: Any = None
        self._alternative: Any = None

    def load(self, size: str, dtype: str) -> dict[str, Any]:
        """Build a pair and its sampler; the pair before is released."""
        from benchmarks.pairs import build
        from benchmarks.registry import Eddecode

        self._pair = self._alternative = None
        self._pair = build(size, dtype)
        self._alternative = Eddecode(self._pair)
        gc.freeze()  # `timed` collects garbage before each run: not through all libraries each time
        return {}

    def run(self, task: str, times: int, quick: bool) -> dict[str, Any]:
        """Run a task `times` times: seconds of one run (their mean), and a digest of the tokens."""
        from benchmarks.measure import timed
        from benchmarks.registry import do
        from benchmarks.tasks import TASKS

        work = TASKS[task].work(self._pair, quick=quick)
        total, results = timed(lambda: [do(self._alternative, work) for _ in range(times)], self._clock)
        digest = hashlib.sha256(json.dumps(results[0]).encode()).hexdigest()
        return {"seconds": total / times, "digest": digest, "tokens": work.tokens}


def main(arguments: list[str]) -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    gc.set_threshold(10_000)  # as `eddecode.utils.collection`, which the other checkout may lack
    worker = Worker(Path(arguments[0]).resolve(), int(arguments[1]), cpu_time=arguments[2] == "cpu")
    for line in sys.stdin:
        request = json.loads(line)
        answer = worker.load(*request["pair"]) if "pair" in request else worker.run(**request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
