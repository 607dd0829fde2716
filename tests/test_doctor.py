"""``edgewise doctor``: a line for each capability, and what it says of a machine that has less."""

from __future__ import annotations

import importlib.util
from typing import Any

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from edgewise.cli import doctor as command
from edgewise.cli import main
from edgewise.errors import BadInput
from edgewise.extras import install_command
from edgewise.network import capabilities
from edgewise.network.capabilities import Capability

NAMES = (
    "relay",
    "network namespaces",
    "tc tbf",
    "tc netem",
    "tun device",
    "timers",
    "file descriptors",
    "CPU pinning",
    "podman",
    "docker",
    "models",
    "packages of weights",
)


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """As if these packages were not installed."""
    real = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name in modules else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)


def test_one_line_per_capability_and_the_same_as_json() -> None:
    result = CliRunner().invoke(main.app, ["doctor", "--json"])
    assert result.exit_code == 0
    assert all("ok" in each for each in msgspec.json.decode(result.stdout))
    found = msgspec.json.decode(result.stdout, type=list[Capability])
    assert tuple(each.name for each in found) == NAMES
    for each in found:
        assert each.found
        assert each.ok or each.needs, f"{each.name} does not say how to get it"
    console = Console(record=True, width=400)
    command.show(found, console)
    lines = console.export_text().splitlines()
    assert len(lines) == len(NAMES)
    assert lines[0].startswith("yes  relay")


def test_without_the_relay_it_fails_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without(monkeypatch, "aiohttp", "pyroute2")
    for name in ("engine", "models", "wheels"):
        monkeypatch.setattr(command, name, lambda *_: Capability("other", "-", "-"))
    result = CliRunner().invoke(main.app, ["doctor"])
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith("no   relay")
    assert lines[0].endswith(f"no aiohttp; needs {install_command('live')}")
    for line in lines[1:5]:
        assert install_command("netns") in line or "root" in line


def test_what_the_kernel_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    netns = pytest.importorskip("edgewise.live.run.netns", reason="extra netns")

    def none(kind: str, namespaces: Capability) -> Capability:
        return Capability(f"tc {kind}", "refused", f"modprobe {kind}")

    yes = Capability("network namespaces", "made one")
    monkeypatch.setattr(capabilities, "network_namespaces", lambda: yes)
    monkeypatch.setattr(capabilities, "qdisc", none)
    assert netns.choose_backend("auto") is None
    assert netns.choose_backend("relay") is None
    assert netns.choose_backend("tc") == "tc"
    with pytest.raises(BadInput, match=r"'tc' needs tc tbf \(refused\); modprobe tbf"):
        netns.require_backend("tc")


def test_a_limit_on_open_files_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities.resource, "getrlimit", lambda _: (256, 256))
    found = capabilities.descriptors()
    assert not found.ok
    assert "ulimit -n 4096" in found.needs
