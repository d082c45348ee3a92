"""Builds the C++ library on first use and keeps it in the user's cache.

Nothing is compiled when the package is installed. The system's compiler is called once. The library's name contains a
hash of the sources, the flags, the compiler and the processor, so that a build of other sources or of another machine
is never loaded. It has a plain C interface, loaded with ctypes: it needs no headers of torch or Python and no ninja,
and takes two seconds to build.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from eddecode_kernels.types import UnavailableError

SOURCES = Path(__file__).with_name("csrc")
COMMON = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-Wno-psabi")
# (flags for compiling, for linking); the first that work are taken. Linked without -fopenmp, the library uses the
# OpenMP that torch has loaded into the process: a second pool of threads would compete with it for the same cores.
TUNINGS = (
    (("-march=native", "-fopenmp"), ()),
    (("-march=native", "-fopenmp"), ("-fopenmp",)),
    (("-march=native",), ()),
    ((), ()),
)


def library() -> ctypes.CDLL:
    """The loaded library, built if it is not in the cache.

    Raises:
        UnavailableError: there is no C++ compiler, or it fails with all sets of flags.
    """
    found = _library()
    if isinstance(found, UnavailableError):
        # A new error: one that is raised again keeps the frames of all its callers alive.
        raise UnavailableError(str(found))
    return found


@cache
def function(symbol: str, *argument_types: Any) -> Any:
    """A function of the library that returns nothing.

    Raises:
        UnavailableError: as `library` does, or the processor lacks the instructions that the function needs.
    """
    try:
        found = getattr(library(), symbol)
    except AttributeError as error:
        raise UnavailableError(f"this processor has no instructions for {symbol}") from error
    found.argtypes, found.restype = argument_types, None
    return found


def instruction_set() -> str:
    """The instructions that the library was compiled for, such as "AVX2". Raises as `library` does."""
    name = library().eddecode_instruction_set
    name.restype = ctypes.c_char_p
    return str(name().decode())


@cache  # failures too: a decode loop must not call a broken compiler for every token
def _library() -> ctypes.CDLL | UnavailableError:
    try:
        return load()
    except UnavailableError as error:
        return error


def load() -> ctypes.CDLL:
    """Find or build the library, and load it. Raises as `library` does."""
    path = library_path()
    if not path.exists():
        build(find_compiler(), path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise UnavailableError(f"{path} cannot be loaded: {error}") from error


@cache
def library_path() -> Path:
    """The file of the library, whether or not it is built."""
    return cache_folder() / f"eddecode-{fingerprint(find_compiler())}.so"


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file in one step."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)


def find_compiler() -> list[str]:
    """The command line that starts the C++ compiler: $CXX, else what is on the path."""
    candidates = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    for command in map(shlex.split, candidates):
        if command and (program := shutil.which(command[0])):
            return [program, *command[1:]]
    raise UnavailableError("no C++ compiler on the path (looked for $CXX, c++, g++, clang++)")


def cache_folder() -> Path:
    """Where libraries are kept: $XDG_CACHE_HOME/eddecode, or a private temporary folder if that is read-only."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "eddecode" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="eddecode-kernels-"))


def fingerprint(compiler: list[str]) -> str:
    """Hash of everything that the library depends on."""
    digest = hashlib.blake2b(digest_size=12)
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    program = Path(compiler[0]).resolve()
    stat = program.stat()
    facts = [
        *compiler,
        str(program),
        stat.st_size,
        stat.st_mtime_ns,
        COMMON,
        TUNINGS,
        platform.machine(),
        _processor(),
    ]
    digest.update(repr(facts).encode())
    return digest.hexdigest()


def build(compiler: list[str], path: Path) -> None:
    """Compile to a temporary name and move it into place, so that two processes never see half a library."""
    problems = []
    for compiling, linking in TUNINGS:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            try:
                objects = [
                    _compile(compiler, compiling, source, folder) for source in sorted(SOURCES.glob("*.cpp"))
                ]
                _call([*compiler, "-shared", *objects, *linking, "-o", str(made)])
                ctypes.CDLL(str(made))
            except (OSError, subprocess.SubprocessError) as error:
                problems.append(f"{error}\n{getattr(error, 'stderr', '') or ''}"[-500:])
            else:
                made.replace(path)
                return
    raise UnavailableError("the C++ compiler fails on the kernel:\n" + problems[-1])


def _compile(compiler: list[str], flags: tuple[str, ...], source: Path, folder: str) -> str:
    target = str(Path(folder) / f"{source.stem}.o")
    _call([*compiler, *COMMON, *flags, "-c", str(source), "-o", target])
    return target


def _call(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)


def _processor() -> str:
    """What -march=native depends on: a cache folder may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(
        sorted({x for x in lines if x.startswith(("model name", "flags", "Features", "CPU part"))})
    )
