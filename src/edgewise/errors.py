"""Every exception that edgewise raises on purpose.

::

    EdgewiseError
    ├── BadInput            the user's mistake: the command line prints it and exits with 2
    │   ├── ScenarioError   a scenario or configuration file
    │   ├── ImagesError     a folder of images or its labels
    │   ├── ModelError      weights that are missing, corrupt or unknown
    │   ├── WireError       a message that does not parse; names the field
    │   └── MissingExtra    an optional dependency that is not installed
    └── PeerError           another process broke the protocol, vanished or refused

Refusal and loss of a request are data (``domain.Status``), never exceptions.
"""

from __future__ import annotations

from edgewise.extras import install_command


class EdgewiseError(Exception):
    """Root of the tree; never raised itself."""


class BadInput(EdgewiseError):
    """Something the user gave cannot be used; the message says what and what was expected."""


class ScenarioError(BadInput):
    """A scenario or configuration file is wrong.

    The message reads ``FILE: FIELD: expected X, got Y``; FIELD is missing if it is about the whole
    file.
    """

    def __init__(self, file: str, path: str, problem: str) -> None:
        self.file, self.path, self.problem = file, path, problem
        super().__init__(": ".join(part for part in (file, path, problem) if part))


class ImagesError(BadInput):
    """An image or a label file cannot be used; the message names the file and the reason."""


class ModelError(BadInput):
    """A model is unknown, its weights are missing, or they do not have the expected sha256."""


class WireError(BadInput):
    """A message does not parse. ``field`` names the offending field ("" = the whole message)."""

    def __init__(self, field: str, problem: str) -> None:
        self.field, self.problem = field, problem
        super().__init__(f"{field}: {problem}" if field else problem)


class MissingExtra(BadInput):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, module: str) -> None:
        self.extra = extra
        super().__init__(
            f"the package {module!r} is not installed; install the extra {extra!r}: "
            f"{install_command(extra)}"
        )


class PeerError(EdgewiseError):
    """Another process broke the protocol, vanished or refused."""
