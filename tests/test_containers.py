"""Real containers: the image is built, a fleet of it is started, loaded, broken and removed.

`scripts/test-containers` runs these, as root, where a package index is; they fail where podman
cannot be installed or the image cannot be built, they do not skip. What they keep between runs
(base image, wheels, layers) is in ~/.cache/edgewise and in podman's store.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml

from containers_case import (
    BUILD,
    DEPLOY,
    ENGINE,
    ENVIRONMENT,
    IMAGE,
    Fleet,
    Photos,
    as_operator,
    engine,
    free_ports,
    left_behind,
    needs,
    remove_strays,
    run,
    until,
)
from edgewise.domain import Status
from test_deploy_files import named

pytestmark = pytest.mark.containers

SMALL, MIDDLE, LARGE = "lite0-128", "lite0-224", "lite2"
MODELS = (SMALL, MIDDLE, LARGE)
ONLY_LARGE = 0.9
"""An accuracy that only lite2 has."""
PATIENT = 60.0
"""s: a deadline that no queue of these tests misses, however busy the machine is."""


@pytest.fixture(scope="session", autouse=True)
def image() -> None:
    """podman and the image, built from wheels with no network."""
    assert os.getuid() == 0, "these tests install packages and make network namespaces: run as root"
    run(DEPLOY / "install-podman.sh", timeout=300)
    remove_strays()
    if BUILD:
        run(DEPLOY / "image.sh", "--tag", IMAGE, timeout=900)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three containers with one model each, and a balancer."""
    fleet = Fleet(tmp_path_factory.mktemp("fleet"), "--models", ",".join(MODELS))
    try:
        fleet.up()
        yield fleet
    finally:
        fleet.down()
    assert left_behind(fleet.name) == []
    assert not (fleet.state / "edgewise" / fleet.name).exists()


# -- the image ---------------------------------------------------------------------------------


def test_the_image_has_labels_and_an_unprivileged_user() -> None:
    (about,) = msgspec.json.decode(engine("image", "inspect", IMAGE))
    config = about["Config"]
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert config["Env"].count("ORT_DISABLE_TELEMETRY=1") == 1
    assert about["Healthcheck"]["Test"] == ["CMD", "edgewise-health"]
    assert about["Size"] < 900e6


def test_every_role_starts_without_network_and_writable_files() -> None:
    for role in ("node", "balancer", "relay", "client", "evaluate", "configs"):
        output = engine("run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp",
                      "--cap-drop=ALL", IMAGE, role, "--help")  # fmt: skip
        assert f"edgewise {role}" in output


def test_the_image_contains_no_build_tools() -> None:
    program = (
        "import importlib.util as u; "
        "print([m for m in ('onnx', 'scipy', 'pip', 'setuptools', 'hatchling', 'torch') "
        "if u.find_spec(m)])"
    )
    python = "/opt/edgewise/bin/python"
    assert engine("run", "--rm", "--entrypoint", python, IMAGE, "-c", program) == "[]"


def test_without_a_writable_tmp_the_error_says_so() -> None:
    done = subprocess.run(
        [ENGINE, "run", "--rm", "--read-only", "--read-only-tmpfs=false", IMAGE, "--version"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=ENVIRONMENT,
    )
    assert done.returncode == 2
    assert "--tmpfs /tmp" in done.stderr


# -- a fleet -----------------------------------------------------------------------------------


def test_a_fleet_is_three_unequal_containers_and_a_balancer(fleet: Fleet) -> None:
    assert set(fleet.container_ids()) == {fleet.container(p) for p in ("balancer", *MODELS)}
    assert set(fleet.ingress) == set(MODELS)
    shares = []
    for model in MODELS:
        (about,) = msgspec.json.decode(engine("inspect", fleet.container(model)))
        host = about["HostConfig"]
        shares.append(host["CpuQuota"] / host["CpuPeriod"])
        assert host["Memory"] == 512 * 2**20
        assert host["ReadonlyRootfs"]
        published = [each for each in about["NetworkSettings"]["Ports"].values() if each]
        assert {each["HostIp"] for ports in published for each in ports} == {"127.0.0.1"}
        engine("healthcheck", "run", fleet.container(model))
    assert shares == [0.5, 0.75, 1.0]
    engine("healthcheck", "run", fleet.container("balancer"))
    assert "ready: the balancer sees every server" in fleet.script("status")


def test_up_again_touches_only_containers_whose_options_changed(fleet: Fleet) -> None:
    before = fleet.container_ids()
    fleet.up()
    assert fleet.container_ids() == before
    fleet.up("--cpus", "0.5,0.75,0.9")
    after = fleet.container_ids()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {fleet.container(LARGE)}
    fleet.up()


async def test_photos_from_outside_get_their_class(fleet: Fleet) -> None:
    photos = Photos()
    plan = [(MODELS[n % 3], ONLY_LARGE) for n in range(20)]
    replies = await photos.send(fleet, plan, PATIENT)
    right = 0
    for each in replies:
        assert each.answer is not None
        outcome = each.answer.outcome
        assert (outcome.status, outcome.server, outcome.model) == (Status.SERVED, LARGE, LARGE)
        right += outcome.predicted == each.label
    assert right >= 16  # all 20 with the images at hand; the photos are the model's own classes


async def test_a_container_killed_with_requests_queued_on_it_loses_none(fleet: Fleet) -> None:
    """Every request is answered exactly once."""
    photos = Photos()
    # Two thirds can be answered by the large one only; the rest by any.
    plan = [((SMALL, MIDDLE)[n % 2], (ONLY_LARGE, ONLY_LARGE, 0.5)[n % 3]) for n in range(120)]
    plan += [(LARGE, 0.5)] * 12  # and some come in at the container that is going to die
    queued = 0
    killed_at = 0.0

    def kill() -> None:
        nonlocal queued, killed_at
        report = f"{fleet.ingress[LARGE]}/v1/report"

        def waiting() -> bool:
            nonlocal queued
            queued = len(fleet.fetched(report)["queue"])
            return queued >= 10

        until(waiting, "a queue on the large server")
        killed_at = time.monotonic()
        engine("kill", "--signal", "KILL", fleet.container(LARGE))

    replies = await photos.send(fleet, plan, PATIENT, kill)
    assert queued >= 10
    assert len(replies) == len(plan)
    broken = [each for each in replies if each.answer is None]
    # Only who spoke to the dead container itself can see a connection break.
    assert {each.request.ingress for each in broken} <= {LARGE}
    assert sum(each.request.ingress == LARGE for each in replies) == 12
    for each in replies:
        assert photos.answers[each.request.id] == (each.answer is not None)
    served_by: dict[str | None, int] = {}
    for each in replies:
        if each.answer is None:
            continue
        outcome = each.answer.outcome
        assert outcome.status in (Status.SERVED, Status.SHED, Status.FAILED), outcome
        if outcome.status is Status.SERVED:
            assert outcome.accuracy is not None
            assert outcome.accuracy >= each.request.accuracy
            served_by[outcome.server] = served_by.get(outcome.server, 0) + 1
        else:
            # Nobody left could have met it, and it says so.
            assert each.request.accuracy == ONLY_LARGE
            assert each.answer.error
    after = [each for each in replies if each.at > killed_at and each.answer is not None]
    assert len(after) >= queued - len(broken)
    assert served_by.get(SMALL, 0) + served_by.get(MIDDLE, 0) > 0, served_by

    def settled() -> bool:
        counts = fleet.fetched(f"{fleet.balancer}/v1/state")["counts"]
        return bool(counts["requests"] >= 120 and counts["duplicates"] == 0)

    until(settled, "the balancer to have counted each once", 10.0)
    # And the same command brings it back.
    fleet.up()
    until(lambda: fleet.fetched(f"{fleet.balancer}/readyz")["ready"], "the killed one to be back")


def test_a_client_in_a_container_sends_photos(fleet: Fleet) -> None:
    """With the fleet's own image, without naming it."""
    done = msgspec.json.decode(fleet.script("send").splitlines()[-1])["done"]
    assert sum(done["outcomes"].values()) == done["sent"] == done["total"] > 50
    assert done["outcomes"]["served"] > 0


async def test_sigterm_drains(fleet: Fleet) -> None:
    photos = Photos()
    plan = [(SMALL, ONLY_LARGE)] * 12
    draining = False

    def stop() -> None:
        nonlocal draining
        report = f"{fleet.ingress[LARGE]}/v1/report"
        until(lambda: len(fleet.fetched(report)["queue"]) >= 3, "a queue on the large server")
        stopping = subprocess.Popen(
            [ENGINE, "stop", fleet.container(LARGE)],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while stopping.poll() is None and not draining:
                servers = fleet.fetched(f"{fleet.balancer}/v1/state")["servers"]
                draining = bool(servers[LARGE]["draining"])
        finally:
            assert stopping.wait(60) == 0

    replies = await photos.send(fleet, plan, PATIENT, stop)
    assert draining, "the balancer does not know"
    for each in replies:
        assert each.answer is not None
        assert each.answer.outcome.status is Status.SERVED, each.answer
        assert each.answer.outcome.server == LARGE
    (about,) = msgspec.json.decode(engine("inspect", fleet.container(LARGE)))
    assert about["State"]["ExitCode"] == 0
    fleet.up()


def test_tc_shapes_the_traffic_that_leaves_a_container(fleet: Fleet) -> None:
    url, who = f"{fleet.ingress[SMALL]}/metrics", fleet.as_operator()

    def seconds() -> float:
        start = time.monotonic()
        run("curl", "--silent", "--fail", *who, *["--output", "/dev/null", url] * 12)
        return time.monotonic() - start

    size = int(run("curl", "-s", *who, "-o", "/dev/null", "-w", "%{size_download}", url))
    assert "tbf" in fleet.script("shape", SMALL, "120kbit")
    slow = seconds()
    assert "tbf" not in fleet.script("shape", SMALL, "off")
    # All but the bucket of 16 kB goes at the rate.
    expected = 8 * (12 * size - 16_384) / 120_000
    assert expected > 0.5
    assert slow > 0.8 * expected
    assert seconds() < slow


async def test_emulation_adds_one_container(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, "--models", f"{SMALL},{MIDDLE}", "--emulate")
    try:
        fleet.up()
        assert fleet.container("relay") in fleet.container_ids()
        control = next(
            line.split()[1] for line in fleet.output.splitlines() if line.startswith("relay")
        )
        photos = Photos()
        replies = await photos.send(fleet, [(SMALL, 0.5)] * 8, PATIENT)
        assert all(each.answer and each.answer.served for each in replies)
        who = fleet.as_operator()
        links = run("curl", "--silent", "--fail", *who, f"{control}/links")
        passed = {
            name: link.get("bytes", link.get("delivered_bytes", 0))
            for name, link in msgspec.json.decode(links).items()
        }
        assert any(name.startswith("access:") for name in passed)
        run("curl", "--silent", "--fail", *who, "-X", "PATCH", f"{control}/links/access:{SMALL}",
            "--json", '{"rate_mbps": 0.4}')  # fmt: skip
        start = time.monotonic()
        (one,) = await photos.send(fleet, [(SMALL, 0.5)], PATIENT)
        assert one.answer is not None
        assert one.answer.served
        assert time.monotonic() - start > 0.7 * 8 * one.request.payload_bytes / 400_000
    finally:
        fleet.down()
    assert left_behind(fleet.name) == []


# -- the launcher ------------------------------------------------------------------------------


def edgewise(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "edgewise", *arguments]


def test_up_with_containers_gives_the_same_summary(tmp_path: Path) -> None:
    both = []
    for how in (["--containers", "--image", IMAGE], []):
        output = run(*edgewise("up", "smoke", "--seed", "3", "--json", "-",
                             "--out", str(tmp_path / f"run{len(both)}"), *how),
                   timeout=240)  # fmt: skip
        both.append(msgspec.json.decode(output))
    contained, plain = both
    assert contained.keys() == plain.keys()
    (theirs,), (ours,) = contained["policies"], plain["policies"]
    assert theirs.keys() == ours.keys()
    assert theirs["requests"] == ours["requests"] > 20
    assert sum(theirs["outcomes"].values()) == theirs["requests"]
    assert theirs["outcomes"]["served"] > 0.5 * theirs["requests"]
    files = {path.name for path in (tmp_path / "run0").iterdir()}
    assert files >= {"requests.parquet", "outcomes.parquet", "decisions.parquet", "summary.json"}
    assert (tmp_path / "run0" / "decisions.parquet").stat().st_uid == os.getuid()
    assert runs() == []


def test_containers_are_removed_when_the_launcher_is_killed(tmp_path: Path) -> None:
    launcher = subprocess.Popen(
        edgewise("up", "smoke", "--containers", "--image", IMAGE, "--duration", "60",
                 "--out", str(tmp_path / "run")),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: len(runs()) >= 4, "containers of the run")
        launcher.send_signal(signal.SIGKILL)
    finally:
        launcher.kill()
        launcher.wait()
    until(lambda: runs() == [], "the containers to be removed")


def runs() -> list[str]:
    """Names of the launchers' containers and networks."""
    output = engine("ps", "--all", "--filter", "label=edgewise.run", "--format", "{{.Names}}")
    output += "\n" + engine(
        "network", "ls", "--filter", "label=edgewise.run", "--format", "{{.Name}}"
    )
    return output.split()


# -- compose and Kubernetes --------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["plain", "emulated"])
def test_compose_runs_the_fleet(profile: str) -> None:
    compose = [
        str(Path(sys.executable).parent / "podman-compose"),
        *("--project-name", "edgewisetest", "--file", str(DEPLOY / "compose.yaml")),
        *("--profile", profile),
    ]
    keys = DEPLOY / "compose" / "edgewise-keys"
    run(DEPLOY / "keys.sh", "compose", EDGEWISE=str(Path(sys.executable).parent / "edgewise"))
    who = as_operator(keys / "operator")
    try:
        run(*compose, "up", "--detach", EDGEWISE_IMAGE=IMAGE)
        until(lambda: answers("https://127.0.0.1:8100/readyz", who), "the fleet of compose", 90.0)
        config = DEPLOY / "compose" / profile / "client.yaml"
        output = run(*edgewise("client", str(config)), timeout=120)
        done = msgspec.json.decode(output.splitlines()[-1])["done"]
        assert sum(done["outcomes"].values()) == done["sent"] == done["total"] > 50
        assert done["outcomes"]["served"] > 0
    finally:
        run(*compose, "down", EDGEWISE_IMAGE=IMAGE)
        shutil.rmtree(keys)
    assert left_behind("edgewisetest") == []


def answers(url: str, who: list[str]) -> bool:
    done = subprocess.run(
        ["curl", *who, "--silent", "--fail", "--max-time", "5", "--output", "/dev/null", url],
        check=False,
        timeout=20,
    )
    return done.returncode == 0


def test_podman_plays_the_deployments(tmp_path: Path) -> None:
    """Deployments, their ConfigMap and their keys; the rest needs a cluster."""
    needs("curl")
    keys = tmp_path / "keys"
    run(*edgewise("pki", "fleet", str(keys), str(DEPLOY / "scenario.yaml")))
    for file in keys.rglob("*"):
        os.chown(file, 10001, 10001)
    made = named("plain")
    network = f"edgewise-kube-{os.getpid()}"
    balancer = free_ports(1)
    files: list[Path] = []
    engine("network", "create", network)
    try:
        for (kind, name), manifest in made.items():
            if kind != "Deployment":
                continue
            pod = manifest["spec"]["template"]["spec"]
            container = pod["containers"][0]
            container["image"] = IMAGE
            # `kube play` runs HTTP probes with a curl that is not in the image.
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                container.pop(probe)
            for volume in pod["volumes"]:
                if volume["name"] == "keys":
                    # podman's Secrets have no modes.
                    secret = volume.pop("secret")["secretName"]
                    folder = keys / secret.removeprefix("edgewise-keys-")
                    volume["hostPath"] = {"path": str(folder), "type": "Directory"}
            if name == "edgewise-balancer":
                container["ports"][0]["hostPort"] = balancer
                container["ports"][0]["hostIP"] = "127.0.0.1"
            file = tmp_path / f"{name}.yaml"
            file.write_text(
                yaml.safe_dump_all([made[("ConfigMap", "edgewise")], manifest]), "utf-8"
            )
            files.append(file)
            # The alias is what a Service would be.
            engine("kube", "play", "--network", f"{network}:alias={name}", str(file), timeout=120)
        url = f"https://127.0.0.1:{balancer}/readyz"
        until(lambda: answers(url, as_operator(keys / "operator")), "the pods", 90.0)
    finally:
        for file in files:
            engine("kube", "down", str(file), timeout=120)
        engine("network", "rm", network)
        for volume in engine("volume", "ls", "--quiet").split():
            if volume == "edgewise":  # of the ConfigMap
                engine("volume", "rm", volume)
    assert left_behind("edgewise-kube") == []
