"""Write requests that the bundled pair was not trained on: `python -m benchmarks audit [FILE [COUNT]]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from eddecode.experiments.corpus import held_out_requests


def main(arguments: list[str]) -> None:
    """Write the file."""
    path = Path(arguments[0] if arguments else Path(__file__).with_name("prompts.jsonl"))
    count = int(arguments[1]) if len(arguments) > 1 else 200
    lines = [json.dumps({"prompt": r.text, "category": r.mood}) for r in held_out_requests(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} prompts in {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
