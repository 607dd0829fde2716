"""Optional dependencies: which extra brings a missing library, and how to install that extra here.

edgewise is on no package index, so ``pip install 'edgewise[live]'`` is advice that fails. The right
command depends on how this copy was installed, which pip records (PEP 610, ``direct_url.json``).
"""

from __future__ import annotations

import json
import re
from importlib import metadata
from typing import Any
from urllib.parse import unquote, urlsplit

NAME = "edgewise"
PACKAGES = {"PIL": "pillow", "stable_baselines3": "sb3-contrib"}
"""Packages that are not called as the modules that they bring."""


def install_command(*extras: str) -> str:
    """The command that installs `extras` beside this copy of edgewise."""
    wanted = ",".join(extras)
    try:
        record = metadata.distribution(NAME).read_text("direct_url.json")
    except metadata.PackageNotFoundError:  # run from its source, without being installed
        return f"pip install -e 'PATH/OF/EDGEWISE[{wanted}]'"
    origin: dict[str, Any] = json.loads(record) if record else {}
    url, folder = origin.get("url", ""), origin.get("dir_info")
    if folder is not None:
        editable = "-e " if folder.get("editable") else ""
        return f"pip install {editable}'{unquote(urlsplit(url).path)}[{wanted}]'"
    if url:  # a wheel, or a repository
        scheme = f"{origin['vcs_info']['vcs']}+" if "vcs_info" in origin else ""
        return f"pip install '{NAME}[{wanted}] @ {scheme}{url}'"
    packages = sorted({each for each, extra in _requirements() if extra in extras})
    return f"pip install {' '.join(repr(each) for each in packages)}"


def extra_of(module: str) -> str | None:
    """The extra that brings the top-level `module`; None if none does.

    ``dev`` only for what no other extra brings.
    """
    package = PACKAGES.get(module, module).lower().replace("-", "_")
    for requirement, extra in sorted(_requirements(), key=lambda each: each[1] == "dev"):
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if name.lower().replace("-", "_") == package:
            return extra
    return None


def _requirements() -> list[tuple[str, str]]:
    """(requirement, extra) of all extras."""
    try:
        lines = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        match = re.fullmatch(r"([^;]+?)\s*;.*extra == ['\"](\w+)['\"].*", line)
        if match:
            found.append((match[1], match[2]))
    return found
