"""What a contender says when it cannot take part."""

from __future__ import annotations


class NotAvailable(Exception):  # noqa: N818  # not an error: it is said in the report
    """A contender cannot do this work (yet)."""
