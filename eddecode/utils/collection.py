"""Garbage collection of Python, in programs of our own."""

from __future__ import annotations

import gc

_NEW_OBJECTS = 10_000


def collect_rarely() -> None:
    """Look for garbage after 10,000 new objects instead of 700, in this process from now on.

    Importing torch and transformers makes a million objects and no garbage, and Python would look through all of them
    again and again: a tenth of the processor time until a pair is loaded. A library must not change this for the
    program that imports it; a command, or a worker process, may.
    """
    gc.set_threshold(_NEW_OBJECTS)
