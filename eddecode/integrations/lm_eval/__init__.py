"""lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness): benchmarks of a pair at any α.

- `model`: the model `eddecode`, declared as an entry point for the release after 0.4.13, which finds it by itself
- `python -m eddecode.integrations.lm_eval run --model eddecode …`: the harness's own command line with that model, for
  releases that do not
- `utility`: what a reversal costs on benchmarks, at every α of a run
"""
