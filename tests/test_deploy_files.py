"""The files in deploy/ agree with their schemas, the scenario and each other.

No container is started here (tests/test_containers.py does that).
"""

from __future__ import annotations

import ast
import configparser
import copy
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import msgspec
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edgewise.live.process_config import BalancerConfig, ClientConfig, NodeConfig, load_config
from edgewise.network.relay.config import load_config as load_relay
from edgewise.scenario import load

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
OVERLAYS = ("plain", "emulated")
KUBERNETES = "1.31"
SERVERS = ("kiosk", "depot", "vault")


# -- Kubernetes --------------------------------------------------------------------------------


def documents(file: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(file.read_text("utf-8")) if each]


def built(folder: Path) -> list[dict[str, Any]]:
    """The output of `kubectl kustomize` for a folder, as far as deploy/ uses it."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
    known = {"apiVersion", "kind", "namespace", "resources", "configMapGenerator", "images"}
    assert set(kustomization) <= known, "this test does not know what that does"
    made: list[dict[str, Any]] = []
    for name in kustomization["resources"]:
        path = folder / name
        made += built(path) if path.is_dir() else documents(path)
    for map_ in kustomization.get("configMapGenerator", ()):
        made = [
            d for d in made if (d["kind"], d["metadata"]["name"]) != ("ConfigMap", map_["name"])
        ]
        data = {Path(f).name: (folder / f).read_text("utf-8") for f in map_["files"]}
        metadata = {"name": map_["name"]}
        made.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    return made


def named(overlay: str) -> dict[tuple[str, str], dict[str, Any]]:
    made = built(DEPLOY / "kubernetes" / "overlays" / overlay)
    names = [(each["kind"], each["metadata"]["name"]) for each in made]
    assert len(set(names)) == len(names)
    return dict(zip(names, made, strict=True))


def containers(overlay: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for (kind, name), each in named(overlay).items():
        if kind == "Deployment":
            pod = each["spec"]["template"]["spec"]
            yield name, pod, pod["containers"][0]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_pass_the_strict_schema(overlay: str) -> None:
    made = named(overlay)
    for each in made.values():
        kubernetes_validate.validate(each, KUBERNETES, strict=True)
    kinds = {kind for kind, _ in made}
    assert kinds >= {
        "Namespace", "ConfigMap", "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy",
    }  # fmt: skip


def test_the_schema_finds_a_misspelt_field() -> None:
    manifest = copy.deepcopy(named("plain")[("Deployment", "edgewise-kiosk")])
    manifest["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ports_probes_and_services_are_those_of_the_configuration(overlay: str) -> None:
    made = named(overlay)
    config = made[("ConfigMap", "edgewise")]["data"]
    for name, _, container in containers(overlay):
        role, file = container["args"]
        assert file.startswith("/etc/edgewise/")
        configured = yaml.safe_load(config[file.removeprefix("/etc/edgewise/")])
        if role == "relay":
            ports = {configured["control"]["port"]} | {
                r["listen"]["port"] for r in configured["routes"]
            }
        else:
            ports = {configured["listen"]["port"]}
        assert {port["containerPort"] for port in container["ports"]} == ports, name
        service = made[("Service", name)]["spec"]
        assert {port["port"] for port in service["ports"]} == ports, name
        labels = made[("Deployment", name)]["spec"]["template"]["metadata"]["labels"]
        assert service["selector"].items() <= labels.items()
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["exec"]["command"][0] == "edgewise-health"
    used = re.findall(r"https://(edgewise-[a-z]+):(\d+)", "".join(
        text for file, text in config.items() if file != "client.yaml"))  # fmt: skip
    assert used
    for host, port in used:
        assert int(port) in {p["port"] for p in made[("Service", host)]["spec"]["ports"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_is_confined_and_limited(overlay: str) -> None:
    found = list(containers(overlay))
    assert len(found) == 4 + (overlay == "emulated")
    for name, pod, container in found:
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["automountServiceAccountToken"] is False
        assert pod["terminationGracePeriodSeconds"] > 2 + 10  # preStop and a node's draining
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"].keys() == {"cpu", "memory"}
        mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
        process = Path(container["args"][1]).stem
        keys = f"/etc/edgewise-keys/{process}"
        assert mounts == {"tmp": "/tmp", "config": "/etc/edgewise", "keys": keys}
        (secret,) = (each["secret"] for each in pod["volumes"] if each["name"] == "keys")
        assert secret == {"secretName": f"edgewise-keys-{process}", "defaultMode": 0o400}
        assert pod["securityContext"]["fsGroup"] == 10001
        config = named(overlay)[("ConfigMap", "edgewise")]["data"][f"{process}.yaml"]
        assert health("identity_of", config) == f"../edgewise-keys/{process}"


def test_the_disruption_budget_and_the_policy_select_the_pods() -> None:
    made = named("plain")
    budget = made[("PodDisruptionBudget", "edgewise-nodes")]["spec"]["selector"]["matchLabels"]
    policy = made[("NetworkPolicy", "edgewise")]["spec"]["podSelector"]["matchLabels"]
    for name in ("balancer", *SERVERS):
        deployment = made[("Deployment", f"edgewise-{name}")]
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert policy.items() <= labels.items()
        assert (budget.items() <= labels.items()) == (name != "balancer")


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_builds_the_same_manifests(overlay: str) -> None:
    folder = DEPLOY / "kubernetes" / "overlays" / overlay
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    theirs = [each for each in yaml.safe_load_all(done.stdout) if each]
    for each in theirs:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)
        if each["kind"] != "Namespace":
            assert each["metadata"]["namespace"]

    def plain(name: str) -> str:
        return re.sub(r"^edgewise-[a-z0-9]{10}$", "edgewise", name)

    assert {(e["kind"], plain(e["metadata"]["name"])) for e in theirs} == set(named(overlay))


# -- compose -----------------------------------------------------------------------------------


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    return loaded


def validate_compose(content: dict[str, Any]) -> None:
    # Variables as compose would fill them in: with their defaults.
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", yaml.safe_dump(content))
    compose_spec.PyCompose.from_yaml(text).validate()


def test_compose_passes_the_schema() -> None:
    validate_compose(compose())


@pytest.mark.parametrize(
    ("field", "value"), [("cpuss", 1), ("cpus", "many"), ("ports", ["127.0.0.1:x:1"])]
)
def test_the_schema_finds_errors_in_compose(field: str, value: Any) -> None:
    content = compose()
    content["services"]["kiosk"][field] = value
    with pytest.raises(ValueError, match=r".+"):
        validate_compose(content)


def test_compose_publishes_the_configured_ports_on_the_loopback() -> None:
    services = compose()["services"]
    for name, service in services.items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
    for name in SERVERS:
        node = load_config(DEPLOY / "compose" / "plain" / f"node-{name}.yaml", NodeConfig)
        assert services[name]["ports"] == [f"127.0.0.1:{node.listen.port}:{node.listen.port}"]
        emulated = services[f"{name}-emulated"]
        assert emulated["networks"]["default"]["aliases"] == [name]
        assert emulated["command"] == services[name]["command"]
        assert "ports" not in emulated
    client = load_config(DEPLOY / "compose" / "emulated" / "client.yaml", ClientConfig)
    published = {p.split(":")[1] for p in services["relay"]["ports"]}
    assert {url.rpartition(":")[2] for url in client.ingress.values()} < published


def test_compose_has_a_profile_with_and_without_the_emulator() -> None:
    by_profile: dict[str, set[str]] = {}
    for name, service in compose()["services"].items():
        for profile in service["profiles"]:
            by_profile.setdefault(profile, set()).add(name)
    assert by_profile["plain"] == {"balancer", *SERVERS}
    assert by_profile["emulated"] == {"balancer", "relay", *(f"{s}-emulated" for s in SERVERS)}
    assert by_profile["monitoring"] == {"prometheus", "grafana"}
    same = (DEPLOY / "compose" / folder / "balancer.yaml" for folder in OVERLAYS)
    assert len({file.read_bytes() for file in same}) == 1  # one service serves both


# -- what is generated, and the rest -----------------------------------------------------------


def test_the_configurations_are_those_of_the_scenario(tmp_path: Path) -> None:
    subprocess.run(
        [DEPLOY / "configs.sh", tmp_path],
        check=True,
        timeout=120,
        env={"EDGEWISE": str(Path(sys.executable).parent / "edgewise"), "PATH": "/usr/bin:/bin"},
    )
    fresh = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.yaml"))
    kept = [
        path.relative_to(DEPLOY)
        for folder in ("compose", "kubernetes/base/config", "kubernetes/overlays/emulated/config")
        for path in (DEPLOY / folder).rglob("*.yaml")
    ]
    assert fresh == sorted(kept)
    for path in fresh:
        assert read(DEPLOY / path) == read(tmp_path / path), f"{path}: run deploy/configs.sh"


def read(file: Path) -> Any:
    """A configuration as a process reads it: a default may be written out or not."""
    if file.stem == "scenario":
        return load(str(file))
    if file.stem == "relay":
        relay = load_relay(file)
        own = os.path.relpath(relay.identity or "", file.parent)
        return msgspec.structs.replace(relay, folder="", identity=own)
    kinds = {"balancer": BalancerConfig, "client": ClientConfig, "node": NodeConfig}
    found: Any = load_config(file, kinds[file.stem.partition("-")[0]])  # type: ignore[type-var]
    own = os.path.relpath(found.identity, file.parent)
    return msgspec.structs.replace(found, scenario="", identity=own)


@pytest.mark.parametrize("folder", ["compose/plain", "compose/emulated"])
def test_the_processes_can_read_their_configurations(folder: str) -> None:
    where = DEPLOY / folder
    assert load(str(where / "scenario.yaml")).server_names == SERVERS
    load_config(where / "balancer.yaml", BalancerConfig)
    load_config(where / "client-inside.yaml", ClientConfig)
    if (where / "relay.yaml").exists():
        load_relay(where / "relay.yaml")


def health(function: str, *arguments: str) -> Any:
    """A function of the image's health check."""
    source = (DEPLOY / "image" / "edgewise-health").read_text("utf-8")
    space: dict[str, Any] = {"__name__": "health"}
    exec(compile(source, "health", "exec"), space)  # our own file; it has no suffix
    return space[function](*arguments)


@pytest.mark.parametrize("folder", ["compose/plain", "compose/emulated"])
def test_the_health_check_reads_the_port_without_a_yaml_library(folder: str) -> None:
    for file in (DEPLOY / folder).glob("*.yaml"):
        if file.stem.startswith(("client", "scenario")):
            continue
        block = "control" if file.stem == "relay" else "listen"
        text = file.read_text("utf-8")
        assert health("port_of", text, block) == yaml.safe_load(text)[block]["port"], file


@pytest.mark.parametrize(
    "text",
    [
        "server: a\nlisten: {host: 0.0.0.0, port: 81}\npeers: {b: 'http://b:82'}\n",
        "listen: {port: 81, host: 0.0.0.0}\n",
        "server: a\nlisten:\n  port: 81\n  host: h\nother:\n  port: 5\n",
        "routes:\n- listen: {port: 7}\nlisten:\n    host: h\n    port: 81\n",
    ],
)
def test_the_health_check_reads_files_written_by_hand(text: str) -> None:
    assert health("port_of", text, "listen") == 81


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("server: a\nidentity: keys/node-a\n", "keys/node-a"),
        ("identity: '/etc/keys/a' # here\n", "/etc/keys/a"),
        ('identity: "keys"\n', "keys"),
        ("server: a\nidentity: null\n", None),
        ("server: a\nother: {identity: x}\n", None),
    ],
)
def test_the_health_check_finds_the_identity(text: str, folder: str | None) -> None:
    assert health("identity_of", text) == folder


def test_compose_gives_each_service_its_own_keys_alone() -> None:
    for name, service in compose()["services"].items():
        mounted = [v for v in service.get("volumes", ()) if "edgewise-keys" in v]
        if name in ("grafana", "prometheus"):
            continue
        config = Path(service["command"][1]).stem
        assert mounted == [f"./compose/edgewise-keys/{config}:/etc/edgewise-keys/{config}:ro"]


def test_keys_are_in_no_commit_and_in_no_image() -> None:
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert "deploy/*/edgewise-keys/" in ignored
    context = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in context
    assert not any(line.startswith("!") and "keys" in line for line in context)
    dockerfile = (DEPLOY / "Dockerfile").read_text("utf-8")
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile.replace("\\\n", ""), re.M)
    sources = {word for line in copied for word in line.split()}
    assert sources <= {"deploy/wheelhouse/", "deploy/image/locks/", "pyproject.toml",
                       "README.md", "LICENSE", "src", "deploy/image/warm_up.py",
                       "deploy/image/edgewise", "deploy/image/edgewise-start",
                       "deploy/image/edgewise-health"}  # fmt: skip


@pytest.mark.parametrize("which", ["live", "onnx", "files", "build"])
def test_the_locks_fit_the_requirements_and_have_hashes(which: str) -> None:
    done = subprocess.run(
        [sys.executable, DEPLOY / "image" / "requirements.py", which, ROOT / "pyproject.toml"],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    locked = lock(which)
    for line in done.stdout.splitlines():
        wanted = Requirement(line)
        version, _ = locked[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version), f"{line}: run deploy/lock.sh"
    assert all(hashes for _, hashes in locked.values())
    for name, (version, _) in lock("live").items():
        assert locked.get(name, (version,))[0] == version, name


def lock(which: str) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of each package in a lock."""
    text = (DEPLOY / "image" / "locks" / f"{which}.txt").read_text("utf-8").replace("\\\n", "")
    found = re.findall(r"^([\w.-]+)==(\S+)(.*)$", text, re.M)
    return {
        canonicalize_name(name): (version, re.findall(r"--hash=sha256:[0-9a-f]{64}", rest))
        for name, version, rest in found
    }


def test_the_image_imports_what_exists() -> None:
    """The command of the image is the package's; what the image's scripts import is there."""
    script = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    module, _, function = script["edgewise"].partition(":")
    command = (DEPLOY / "image" / "edgewise").read_text("utf-8")
    assert f"from {module} import {function}" in command
    for text in (command, (DEPLOY / "image" / "warm_up.py").read_text("utf-8")):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                source = importlib.import_module(node.module or "")
                assert all(hasattr(source, each.name) for each in node.names), node.module


def test_units_run_existing_commands_and_are_confined() -> None:
    roles = set()
    for file in (DEPLOY / "systemd").glob("*.service"):
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read(file)
        command = unit["Service"]["ExecStart"].split()
        roles.add(command[1])
        assert command[0].endswith("/edgewise")
        assert unit["Service"]["NoNewPrivileges"] == "yes"
        assert unit["Service"]["User"] == "edgewise"
    assert roles == {"balancer", "node", "relay"}


def test_the_dashboard_uses_metrics_that_exist() -> None:
    dashboard = json.loads((DEPLOY / "monitoring" / "dashboard.json").read_text("utf-8"))
    text = " ".join(t["expr"] for panel in dashboard["panels"] for t in panel["targets"])
    asked = set(re.findall(r"([a-z_]{5,})\{job", text))
    sources = "".join(
        (ROOT / "src/edgewise/live" / file).read_text("utf-8")
        for file in ("balancer/balancer_metrics.py", "node/node_metrics.py", "node/node.py")
    )
    for metric in asked:
        plain = re.sub(r"_(total|bucket)$", "", metric)
        assert f'"{plain}"' in sources, metric
    targets = yaml.safe_load((DEPLOY / "monitoring" / "prometheus.yml").read_text("utf-8"))
    jobs = {
        job["job_name"]: job["static_configs"][0]["targets"] for job in targets["scrape_configs"]
    }
    assert set(re.findall(r'job="([a-z]+)"', text)) <= set(jobs)
    assert {target.partition(":")[0] for target in jobs["node"]} == set(SERVERS)


@pytest.mark.parametrize("style", ["block", "flow"])
def test_the_fleet_script_finds_the_servers_in_either_style_of_yaml(
    tmp_path: Path, style: str
) -> None:
    (tmp_path / "config").mkdir()
    config = {
        "scenario": "scenario.yaml",
        "balancer": "https://127.0.0.1:8100",
        "ingress": {"lite0-96": "https://127.0.0.1:8101", "lite2": "http://127.0.0.1:8102"},
        "out": None,
    }
    text = yaml.safe_dump(config, default_flow_style=None if style == "flow" else False)
    (tmp_path / "config" / "client.yaml").write_text(text)
    (function,) = re.findall(r"^ingress_of\(\).*$", (DEPLOY / "fleet.sh").read_text("utf-8"), re.M)
    for server, url in config["ingress"].items():  # type: ignore[union-attr]
        call = f"STATE={tmp_path}\n{function}\ningress_of {server}"
        done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, check=True)
        assert done.stdout == f"{url}\n"


@pytest.mark.parametrize("script", sorted(p.name for p in DEPLOY.glob("*.sh")))
def test_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", DEPLOY / script], check=True, timeout=10)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["up", "--models", "a;b"], "models separated by commas"),
        (["up", "--cpus", "x"], "numbers separated by commas"),
        (["up", "--memory", "-1"], "sizes such as"),
        (["up", "--port"], "expected a value"),
        (["up", "--name", "../x"], "a name of"),
        (["sideways"], "unknown command"),
    ],
)
def test_the_fleet_script_refuses_unknown_arguments(
    arguments: list[str], problem: str, tmp_path: Path
) -> None:
    # An engine that would fail if it were asked anything.
    engine = tmp_path / "podman"
    engine.write_text("#!/bin/sh\nexit 99\n", "utf-8")
    engine.chmod(0o755)
    done = subprocess.run(
        ["bash", DEPLOY / "fleet.sh", *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "EDGEWISE_ENGINE": "podman",
        },
    )
    assert done.returncode == 2
    assert problem in done.stderr
    assert not (tmp_path / ".local").exists()
