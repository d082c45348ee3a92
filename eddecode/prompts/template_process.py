"""Running chat templates within limits: the parent's side of `template_worker`.

One child process serves all templates of this process. It is started by the first rendering, and started anew after a
template that went over its limits.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from signal import SIGKILL, SIGPROF
from typing import Any

from eddecode.errors import PromptError

TEMPLATE_DATE = "2024-07-26"  # the date that every template is given; a run records it
OUTPUT_LIMIT = 1 << 20  # characters that a template may write beside 16 times what it was given
_SECONDS = 1  # as in template_worker


class TemplateLimitError(PromptError):
    """A template went over the limits of time or memory, so that the process that ran it was ended."""


class _Child:
    """The child process, and the lock of its conversation."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The child's answer. TemplateLimitError if it had to be ended."""
        with self._lock:
            process = self._process = self._process or _start()
            assert process.stdin is not None
            assert process.stdout is not None
            line = b""
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:  # it has ended
                line = b""
            finally:  # after Ctrl-C too: an answer that was not read would be taken for the next one's
                if not line.endswith(b"\n"):
                    self.end()
        if not line.endswith(b"\n"):
            raise TemplateLimitError(_why_ended(process.returncode))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """End the child; the next request starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()  # the child ends with its input
        try:
            process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start() -> subprocess.Popen[bytes]:
    paths = os.pathsep.join(path for path in sys.path if path)
    fixed = {"PYTHONPATH": paths, "TZ": "UTC", "PYTHONHASHSEED": "0"}
    worker = str(Path(__file__).with_name("template_worker.py"))
    return subprocess.Popen(
        [sys.executable, "-P", worker],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **fixed},
    )


def _why_ended(status: int | None) -> str:
    if status == -SIGPROF:
        return f"it did not end within {_SECONDS} second of computing"
    if status == -SIGKILL:
        return "the process that rendered it was killed; is there enough memory?"
    return f"the process that rendered it ended with status {status}; can {sys.executable} import jinja2?"


_child = _Child()


def _forget_child() -> None:
    """After a fork: the child belongs to the parent, and a second reader would mix up their answers."""
    global _child  # noqa: PLW0603 - one child per process
    _child = _Child()


def _end_child() -> None:
    _child.end()


os.register_at_fork(after_in_child=_forget_child)
atexit.register(_end_child)


def run_template(source: str, variables: Mapping[str, Any], given: int = 0) -> str:
    """The text of a Jinja chat template, rendered as transformers renders it, within limits.

    Args:
        source: the template.
        variables: of JSON types, such as `messages` and `add_generation_prompt`.
        given: characters of the messages; a template may write 16 times as many and OUTPUT_LIMIT more.

    Raises:
        PromptError: the template raises an error, or writes too much; the message is the reason alone, without the
            name of the template.
        TemplateLimitError: a PromptError: it goes over the limits of time or memory.
    """
    limit = OUTPUT_LIMIT + 16 * given
    answer = _child.ask({"source": source, "variables": dict(variables), "limit": limit})
    if "error" in answer:
        raise PromptError(str(answer["error"]))
    return str(answer["text"])


@lru_cache(maxsize=64)
def variables_of(source: str) -> frozenset[str]:
    """The names of the variables that a template reads. PromptError if it is no Jinja template."""
    answer = _child.ask({"source": source, "variables": None, "limit": 0})
    if "error" in answer:
        raise PromptError(str(answer["error"]))
    return frozenset(answer["names"])
