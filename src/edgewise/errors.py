"""Every exception that edgewise raises on purpose.

::

    EdgewiseError
    ├── BadInput            a mistake of the user: commands print it and exit with 2
    │   ├── ScenarioError   in a scenario, configuration, profile or trace file
    │   ├── ImagesError     in an image, a folder of images or their labels
    │   ├── ModelError      an unknown model, or weights that are missing or corrupt
    │   ├── WireError       in a message, of which it names the field
    │   └── MissingExtra    an optional dependency that is not installed
    └── PeerError           another process broke the protocol, vanished or refused

A refused or lost request is no exception but an outcome (`edgewise.domain.Status`).
"""

from __future__ import annotations

from edgewise.extras import install_command


class EdgewiseError(Exception):
    """The root of the tree; it is never raised itself.

    >>> issubclass(BadInput, EdgewiseError)
    True
    """


class BadInput(EdgewiseError):
    """Input that cannot be used. The message says what is wrong and what was expected.

    >>> import edgewise as ew
    >>> try:
    ...     ew.simulate("smoke", "sedd")
    ... except ew.BadInput as error:
    ...     print(str(error)[:42])
    unknown policy 'sedd' (did you mean sed?);
    """


class ScenarioError(BadInput):
    """A file that the user wrote is wrong: a scenario, a configuration, a profile or a trace.

    The message reads ``FILE: FIELD: expected X, got Y``, without FIELD if the whole file is meant.
    """

    def __init__(self, file: str, path: str, problem: str) -> None:
        self.file, self.path, self.problem = file, path, problem
        super().__init__(": ".join(part for part in (file, path, problem) if part))


class ImagesError(BadInput):
    """An image or a label file cannot be used. The message names the file and the reason."""


class ModelError(BadInput):
    """A model is unknown, its weights are missing, or they do not have the expected sha256."""


class WireError(BadInput):
    """A message does not parse. `field` names the wrong field; "" is the whole message."""

    def __init__(self, field: str, problem: str) -> None:
        self.field, self.problem = field, problem
        super().__init__(f"{field}: {problem}" if field else problem)


class MissingExtra(BadInput):
    """An optional dependency is not installed. The message has the command that installs it."""

    def __init__(self, extra: str, module: str) -> None:
        self.extra = extra
        super().__init__(
            f"the package {module!r} is not installed; install the extra {extra!r}: "
            f"{install_command(extra)}"
        )


class PeerError(EdgewiseError):
    """Another process broke the protocol, vanished or refused."""
