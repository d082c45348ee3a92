"""Messages on standard error, which is for everything that is not data; and errors, each of which becomes one."""

from __future__ import annotations

import errno
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.text import Text

from eddecode.errors import EddecodeError
from eddecode.utils.terminal import escape_control_chars

_LONGEST_NAME = 80  # characters of a path in a message
_REMEDIES = {
    errno.ENAMETOOLONG: "give a shorter name: file systems take at most 255 bytes for each part of a path",
    errno.ENOTDIR: "a part of the path is a file, choose another",
    errno.EISDIR: "it is a folder, name a file",
    errno.EEXIST: "choose another place",
    errno.ENOENT: "check the path",
    errno.ENOTEMPTY: "choose another place",
    errno.EACCES: "make it readable and writable for you, or choose another place",
    errno.EPERM: "make it readable and writable for you, or choose another place",
    errno.EROFS: "the file system is read-only, choose another place",
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "free some space and run the same command again",
    errno.ELOOP: "its links lead in a circle, choose another place",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.EIO: "check the disk",
}  # what to do about the errors of the system that a path or a disk can give

_DEBUG = Annotated[
    bool, typer.Option("--debug", help="Show the trace of an error, and not only its message.")
]
_OF_TYPER = ("typer", "click")  # packages whose exceptions end a command in their own way


class Trace:
    """Whether the user asked for the traces of errors (`--debug`)."""

    wanted = False


class _OutputConsole(Console):
    """A console of standard output that goes on where nobody reads it any more: rich would end with exit code 1."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _silence_output()


def stdout_console(**options: Any) -> Console:
    """The console for tables and data. options: of rich's console."""
    return _OutputConsole(**options)


def _silence_output() -> None:
    """Send what is still written to standard output nowhere: the reader of the pipe has ended."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stderr_console() -> Console:
    """The console for everything that is not data."""
    return Console(stderr=True, highlight=False)


def print_error(message: str) -> None:
    """An error on standard error; a path or a text in it may hold control characters."""
    text = Text("error: ", style="bold red") + Text(escape_control_chars(message), style="red")
    stderr_console().print(text, soft_wrap=True)


def print_notice(text: str) -> None:
    """A sentence that nobody should miss, on standard error."""
    sentence = escape_control_chars(text)
    stderr_console().print(Text("WARNING: ", style="bold yellow") + Text(f"{sentence}."), soft_wrap=True)


@dataclass
class Ending:
    """How a command ends where nobody reads its output to the end. code: the exit code."""

    code: int = 0


@contextmanager
def errors_as_messages(run: Path | None = None) -> Iterator[Ending]:
    """Turn expected errors into a message and an exit code; with `--debug` they keep their trace.

    Args:
        run: folder of the run, named when the user interrupts the command.

    Yields:
        The ending; a command whose exit code says something sets its code before it writes.
    """
    ending = Ending()
    try:
        yield ending
    except EddecodeError as error:
        if Trace.wanted:
            raise
        print_error(str(error))
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        kept = (
            f" The completions so far are in {run}; the same command continues from there."
            if run is not None
            else ""
        )
        stderr_console().print(Text(f"Stopped.{escape_control_chars(kept)}"), soft_wrap=True)
        raise typer.Exit(130) from None
    except BrokenPipeError:  # the reader of a pipe has ended, as in `eddecode export RUN | head`
        _silence_output()
        raise typer.Exit(ending.code) from None
    except OSError as error:
        if Trace.wanted:
            raise
        print_error(os_error_in_words(error))
        raise typer.Exit(2) from None


def os_error_in_words(error: OSError) -> str:
    """What the system refused, why, and what to do: `NAME…: File name too long; give a shorter name …`.

    >>> os_error_in_words(OSError(errno.ENOTDIR, "Not a directory", "notes.txt/run"))
    'notes.txt/run: Not a directory; a part of the path is a file, choose another'
    """
    reason = error.strerror or str(error)
    path = error.filename  # a number where a file was opened by one
    name = (
        ""
        if path is None
        else os.fsdecode(path)
        if isinstance(path, str | bytes | os.PathLike)
        else str(path)
    )
    shown = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}… ({len(name)} characters)"
    remedy = _REMEDIES.get(error.errno or 0, "check the path, the disk and your rights" if shown else "")
    return f"{shown}{': ' if shown else ''}{reason}{'; ' if remedy else ''}{remedy}"


def guarded(function: Callable[..., None]) -> Callable[..., None]:
    """The function with a parameter `debug`; an error that nobody expected is a message and exit code 2, and so is a
    path that is blank text."""

    @wraps(function)
    def command(*, debug: bool = False, **options: Any) -> None:
        Trace.wanted = debug
        try:
            function(**options)
        except Exception as error:
            if type(error).__module__.partition(".")[0] in _OF_TYPER or debug:
                raise
            if isinstance(error, OSError) and error.errno in _REMEDIES:
                print_error(os_error_in_words(error))
                raise typer.Exit(2) from None
            print_error(
                f"{_place(error)}; this is a fault of eddecode: --debug shows the trace, please report it"
            )
            raise typer.Exit(2) from None

    signature = inspect.signature(function, eval_str=True)
    parameter = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_DEBUG)
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), parameter]
    )
    known = {name: each.annotation for name, each in signature.parameters.items()}
    _refuse_blank_paths(command)
    command.__annotations__ = {**known, "debug": _DEBUG, "return": None}
    return command


def _place(error: Exception) -> str:
    """What was raised, and where: `KeyError: 'x' (run.py, line 12)`."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename.rpartition('/')[2]}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}{where}"


def _refuse_blank_paths(function: Callable[..., None]) -> None:
    """Have options and arguments that are paths refuse blank text: it would be the current folder.

    Most often it is a shell variable that is not set. Changes the annotations of the parameters, which are no text.
    """
    for parameter in inspect.signature(function).parameters.values():
        annotated, *metadata = [*get_args(parameter.annotation), parameter.annotation]
        if annotated is Path or Path in get_args(annotated):
            for info in metadata:
                if isinstance(info, typer.models.ParameterInfo):
                    info.parser = _path


def _path(value: str) -> Path:
    if not str(value).strip():
        raise typer.BadParameter("it is blank; expected a file or a folder (is a shell variable not set?)")
    return Path(value)


_path.__name__ = "path"  # which help shows as the type
