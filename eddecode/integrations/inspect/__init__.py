"""Inspect AI (https://inspect.aisi.org.uk): the pair as a model, our judges as scorers, runs as logs and back.

- `registry`: what Inspect finds by the entry point `inspect_ai`: `eddecode/pair`, `eddecode/reversal`,
  `eddecode/judges`
- `provider`: the model; `service`: one thread per pair that decodes the requests of all tasks and α's together
- `task`: prompts × α; `scorers`: judges in batches, standard errors by prompt
- `export_logs`: a run as `.eval` logs; `import_logs`: logs as a run, for the gate
"""
