"""The child process that runs chat templates. Started by `template_process`; it is a program of its own.

A chat template is a program that comes with a checkpoint: it may loop for hours, or build a text that fills the memory.
Some of that is a single call of the interpreter, which nothing in the same process can interrupt. So templates run in
a child with limits of the operating system: seconds of computing per rendering, and memory. What would differ from day
to day is fixed: the date, the clock, and the random numbers.

Each line of standard input is a request, {"source", "variables", "limit"}, and each line of standard output its answer,
{"text"} or {"error"}; with "variables" null the answer is {"names"}: the variables that the template reads. The
environment is the one of transformers (`chat_template_utils`), so that a template renders as `apply_chat_template`
renders it. Nothing of eddecode is imported: the child starts in some 60 ms.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = datetime(2024, 7, 26)  # the default date of Llama 3.1's own template
CPU_SECONDS = 1.0  # of one rendering; a long chat takes some milliseconds
MEMORY_BYTES = 1 << 29
_ERROR_LENGTH = 300


class GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}`: marks the assistant's text for training; here its body alone."""

    tags = {"generation"}  # noqa: RUF012 - the attribute of jinja2's class

    def parse(self, parser: Any) -> nodes.Node:
        """The body of the block, in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    @staticmethod
    def _body(caller: Callable[[], str]) -> str:
        return caller()


class TemplateNamespace(jinja2.utils.Namespace):
    """jinja2's `namespace` without names that begin with an underscore, as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, given = args[0], dict(*args[1:], **kwargs)
        for name in given:
            TemplateNamespace.check_name(name)
        jinja2.utils.Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        TemplateNamespace.check_name(name)
        super().__setitem__(name, value)

    @staticmethod
    def check_name(name: Any) -> None:
        """Refuse an underscore: the sandbox protects what begins with one."""
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


def _raise_exception(message: str) -> str:
    raise jinja2.exceptions.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(format: str) -> str:
    return NOW.strftime(format)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


@lru_cache(maxsize=1)
def environment() -> ImmutableSandboxedEnvironment:
    """The sandbox of transformers, with a clock that stands still."""
    found = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, jinja2.ext.loopcontrols]
    )
    found.filters["tojson"] = _to_json
    found.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        now=lambda *zone: NOW,  # other programs give their templates this one
        dict=_make_dict,
        namespace=TemplateNamespace,
    )
    return found


@lru_cache(maxsize=64)
def _compiled(source: str) -> jinja2.Template:
    return environment().from_string(source)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request."""
    random.seed(0)  # the filter `random` and the function `lipsum` use this generator
    try:
        with _limited_time():
            if request["variables"] is None:
                return {
                    "names": sorted(
                        jinja2.meta.find_undeclared_variables(environment().parse(request["source"]))
                    )
                }
            return {"text": _render(_compiled(request["source"]), request["variables"], request["limit"])}
    except MemoryError:
        return {"error": f"it needs more than {MEMORY_BYTES >> 20} MiB of memory"}
    except Exception as error:  # a template can raise anything
        return {"error": (str(error) or type(error).__name__)[:_ERROR_LENGTH]}


def _render(template: jinja2.Template, variables: dict[str, Any], limit: int) -> str:
    pieces, length = [], 0
    for piece in template.generate(**variables):
        length += len(piece)
        if length > limit:
            raise jinja2.exceptions.TemplateError(f"it writes more than {limit:,} characters")
        pieces.append(piece)
    return "".join(pieces)


@contextlib.contextmanager
def _limited_time() -> Iterator[None]:
    """The operating system ends this process after CPU_SECONDS, whatever the interpreter is doing."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    """Answer requests until standard input ends."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; this process ends with it
    for line in sys.stdin.buffer:
        reply = json.dumps(answer(json.loads(line)))  # ASCII: lone surrogates pass unchanged
        sys.stdout.buffer.write(reply.encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
