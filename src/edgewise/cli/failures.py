"""Errors as a user sees them: one line, exit code 2; only bugs show a traceback."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

from rich.console import Console
from rich.text import Text

from edgewise.errors import EdgewiseError, MissingExtra
from edgewise.extras import extra_of

MACHINE = frozenset(
    (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EMFILE,
        errno.EPIPE,
    )
)
"""Errors of a disk, a file or a pipe: no bug, wherever they surface."""


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Print an error of what runs inside as one line, and exit.

    Exit codes: 2 for a mistake of the user, a full or read-only disk, or a peer that failed; 130
    for Ctrl-C. A library that is missing is an error that names its extra, so scripts put their
    imports of optional libraries inside, too.
    """
    try:
        with _missing_extras():
            yield
    except EdgewiseError as error:
        _fail(str(error) or type(error).__name__)
    except OSError as error:
        if error.errno not in MACHINE:
            raise
        with contextlib.suppress(OSError, ValueError):  # or Python flushes it again, and complains
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            sys.exit(1)  # whoever read the output has enough
        _fail(f"{error.filename or 'standard output'}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)


@contextlib.contextmanager
def _missing_extras() -> Iterator[None]:
    """Turn an import that fails into the error that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        extra = extra_of(module)
        if extra is None:
            raise
        raise MissingExtra(extra, module) from None


def _fail(message: str) -> NoReturn:
    """Print the first line as an error, the others (the end of a log) dim; exit with 2."""
    first, *others = message.splitlines()
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text.assemble(("error: ", "bold red"), (first, "red")))
    for line in others:
        console.print(Text(line, style="dim"))
    sys.exit(2)
