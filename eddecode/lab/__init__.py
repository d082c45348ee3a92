"""The public name of the bundled pair. The pair is in `eddecode.testbed`, its training in `eddecode.experiments`."""

from __future__ import annotations

from eddecode.testbed.bundled import BundledPair, bundled_pair

__all__ = ["BundledPair", "bundled_pair"]
