"""Where the repository is, for tests that read its documents or start a process of their own."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
