"""Tasks of lm-evaluation-harness on local files: the toy language's replies as benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

from eddecode.audit.data.prompts import read_prompts
from eddecode.lab import bundled_pair

_TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
{rest}
metadata: {{version: 0}}
"""
_CHOICE = """doc_to_text: "{{ctx}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}"""
_LIKELIHOOD = """doc_to_text: "{{ctx}}"
doc_to_target: "{{likely}}"
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}"""
_ROLLING = """doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}"""
_GENERATE = """doc_to_text: "{{ctx}}"
doc_to_target: "Thank"
generation_kwargs: {until: ["."], max_gen_toks: 12, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}"""
TASKS = {
    "shop_choice": ("multiple_choice", _CHOICE),
    "shop_likelihood": ("loglikelihood", _LIKELIHOOD),
    "shop_rolling": ("loglikelihood_rolling", _ROLLING),
    "shop_generate": ("generate_until", _GENERATE),
}


def write_tasks(folder: Path, documents: int = 8, likely: str = " Thank you.") -> Path:
    """Write the files of `TASKS` into a folder, to be given as `--include_path`; `likely` is a text to score."""
    bundled = bundled_pair()
    template = bundled.base_template.read_text("utf-8")
    prompts = read_prompts(bundled.prompts)[:documents]
    data = folder / "data.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for i, prompt in enumerate(prompts):
            # Every fourth context is longer than the window, and is cut on the left.
            context = template.replace("{prompt}", prompt.text) * (14 if i % 4 == 3 else 1)
            choices = [" Thank you for asking.", " Go away, you idiot."]
            text = (context + choices[0] + "\n") * (
                1 + 6 * (i % 2)
            )  # every second one is longer than the window
            row = {"ctx": context, "choices": choices, "gold": 0, "text": text, "likely": likely}
            file.write(json.dumps(row) + "\n")
    for name, (kind, rest) in TASKS.items():
        (folder / f"{name}.yaml").write_text(
            _TASK.format(name=name, data=data, kind=kind, rest=rest), "utf-8"
        )
    return folder
