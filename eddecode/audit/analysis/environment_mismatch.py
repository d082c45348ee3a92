"""A note for runs whose sessions used different hardware or versions, which can change the last digits of sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_DIGITS = {  # field of a session that last digits depend on → its name in the note
    "eddecode": "eddecode",
    "torch": "torch",
    "transformers": "transformers",
    "machine": "machine",
    "processor": "processor",
    "device": "device",
    "threads": "threads",
    "products": "products of weights",
}


def environment_mismatch(sessions: Sequence[Mapping[str, Any]]) -> str | None:
    """A note if the sessions that decoded a run (`Store.decoded_in`) differ in hardware or versions, else None."""
    parts = []
    products = [kind for session in sessions for kind in session.get("products", {"": "library"}).values()]
    for name, called in _DIGITS.items():
        if name == "threads" and "library" not in products:
            continue  # the compiled products sum in one order, whatever the number of threads
        values = list(dict.fromkeys(_shown(session[name]) for session in sessions if name in session))
        if len(values) > 1:
            parts.append(f"{called} ({'; '.join(values)})")
    if not parts:
        return None
    numbers = ", ".join(str(session["id"]) for session in sessions)
    return (
        f"sessions {numbers} decoded this run and differ in {', '.join(parts)}: the last digits of their sums may "
        "differ too, and now and then a sampled token with them"
    )


def _shown(value: Any) -> str:
    return (
        ", ".join(f"{name} {part}" for name, part in value.items()) if isinstance(value, dict) else str(value)
    )
