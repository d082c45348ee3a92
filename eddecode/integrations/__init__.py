"""eddecode in the tools that evaluators and researchers use already; each tool is an optional extra.

- `inspect`: model provider, task, scorers and logs of Inspect AI (`eddecode[inspect]`)
- `lm_eval`: a model of lm-evaluation-harness (`eddecode[lm-eval]`)
- `ray_workers`: decoding of an audit in several processes (`eddecode[ray]`)
- `transformers`: a logits processor and a `custom_generate` function

All of them decode and score by `eddecode.Sampler`. A library is imported by its own package here and nowhere else.
docs/integrations.md shows each at work.
"""
