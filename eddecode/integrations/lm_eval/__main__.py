"""The command line of lm-evaluation-harness, with the model `eddecode` registered."""

from __future__ import annotations

from lm_eval.__main__ import cli_evaluate

import eddecode.integrations.lm_eval.model  # noqa: F401  (registers the model)

if __name__ == "__main__":
    cli_evaluate()
