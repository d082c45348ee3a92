"""The paper's findings about emulated disalignment, reproduced from scratch on the toy language: a file per finding.

Each experiment is a claim with a criterion that code evaluates; a claim that is not reproduced is a result too. `run`
measures the experiments, `record` stores a run, `page` writes the page.
"""
