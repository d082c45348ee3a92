"""Audits of these tests draw no pictures, unless a test asks for them."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _no_pictures(no_pictures: None) -> None: ...
