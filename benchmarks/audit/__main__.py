"""Write requests that the bundled pair was not trained on."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from eddecode.experiments.corpus import held_out_requests


def main(arguments: list[str]) -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks audit", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path(__file__).with_name("prompts.jsonl"))
    parser.add_argument("count", nargs="?", type=int, default=200)
    options = parser.parse_args(arguments)
    lines = [json.dumps({"prompt": r.text, "category": r.mood}) for r in held_out_requests(options.count)]
    options.file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} prompts in {options.file}")


if __name__ == "__main__":
    main(sys.argv[1:])
