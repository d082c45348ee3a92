"""The run that docs/findings.md shows: its configuration, the command that makes the page, and the raw figures."""
