"""Print what the image costs: its size and of what, time from start to ready, memory.

    python benchmarks/containers.py [--image NAME] [--times N] [--json FILE] [--docs]

For each role a container is started as deploy/fleet.sh starts it, but with no limit on CPU, and
timed from `run` to the process's own ready line and to the first success of the image's health
check. Memory is the container's, as the engine counts it, 5 s after it is ready; a node has one
model. Medians of N starts. With --docs the tables of docs/deploy.md are written anew. Uses docker
or podman, whichever is here; about a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

DEPLOY = Path(__file__).parents[1] / "deploy"
DOCUMENT = DEPLOY.parent / "docs" / "deploy.md"
NAME = f"edgewise-bench-{os.getpid()}"
SETTLE = 5.0
"""s until memory is read: a process has then sent its first reports."""
PARTS = (
    ("base image, with Python", "/usr /var /etc"),
    ("llvmlite (numba's compiler)", "/opt/edgewise/lib/python3*/site-packages/llvmlite"),
    ("pyarrow", "/opt/edgewise/lib/python3*/site-packages/pyarrow"),
    ("ONNX Runtime", "/opt/edgewise/lib/python3*/site-packages/onnxruntime"),
    ("numpy", "/opt/edgewise/lib/python3*/site-packages/numpy*"),
    ("models", "/opt/edgewise-app/cache"),
    ("compiled loops", "/opt/edgewise-app/numba"),
    ("edgewise itself", "/opt/edgewise-app/lib"),
)


class Engine:
    """docker or podman."""

    def __init__(self) -> None:
        wish = os.environ.get("EDGEWISE_ENGINE")
        docker = shutil.which("docker") is not None and (
            subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0
        )
        self.name = wish or ("docker" if docker else "podman")
        hybrid = not Path("/sys/fs/cgroup/cgroup.controllers").exists()
        if self.name == "podman" and hybrid:
            os.environ.setdefault("CONTAINERS_CONF", str(DEPLOY / "podman" / "containers.conf"))

    def __call__(self, *arguments: str, check: bool = True) -> str:
        said = subprocess.run(
            [self.name, *arguments], capture_output=True, text=True, check=False, timeout=120
        )
        if check and said.returncode != 0:
            raise SystemExit(f"{self.name} {' '.join(arguments)}: {said.stderr.strip()}")
        return said.stdout + said.stderr


def parts(engine: Engine, image: str) -> dict[str, float]:
    """MB by part of the image, as `du` counts them."""
    found = {}
    for name, paths in PARTS:
        said = engine("run", "--rm", "--pull", "never", "--network", "none", "--entrypoint", "sh",
                      image, "-c", f"du -scx {paths} 2>/dev/null | tail -1")  # fmt: skip
        match = re.search(r"(\d+)\s+total", said)
        found[name] = int(match[1]) * 1024 / 1e6 if match else 0.0
    return found


def start(engine: Engine, image: str, role: str, config: Path) -> tuple[float, float, float]:
    """Seconds to the ready line and to healthy, and bytes of memory, of one container."""
    begun = time.monotonic()
    engine("run", "--detach", "--pull", "never", "--name", NAME, "--read-only", "--tmpfs", "/tmp",
           "--volume", f"{config.parent}:/etc/edgewise:ro",
           image, role, f"/etc/edgewise/{config.name}")  # fmt: skip
    try:
        said = healthy = 0.0
        while not healthy:
            if time.monotonic() > begun + 120:
                raise SystemExit(f"{role} was not ready in two minutes:\n{engine('logs', NAME)}")
            if not said and '"ready"' in engine("logs", NAME):
                said = time.monotonic() - begun
            if said and "ok" in engine("exec", NAME, "sh", "-c", "edgewise-health && echo ok",
                                       check=False):  # fmt: skip
                healthy = time.monotonic() - begun
        time.sleep(SETTLE)
        usage = engine("stats", "--no-stream", "--format", "{{.MemUsage}}", NAME)
        match = re.search(r"([\d.]+)\s*([kMG]?)i?B\s*/", usage)
        assert match, usage
        unit = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}[match[2]]
        return said, healthy, float(match[1]) * unit
    finally:
        engine("rm", "--force", NAME)


def measure(image: str, times: int) -> dict[str, Any]:
    engine = Engine()
    size = int(engine("image", "inspect", "--format", "{{.Size}}", image).strip().splitlines()[0])
    found: dict[str, Any] = {
        "image": image,
        "engine": engine.name,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "size_mb": size / 1e6,
        "parts_mb": parts(engine, image),
        "roles": {},
    }
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        shutil.copytree(DEPLOY / "compose" / "emulated", folder, dirs_exist_ok=True)
        folder.chmod(0o755)
        # Alone, it finds no host of these names: it looks for one only when a photo comes.
        for what, role, file in (
            ("balancer", "balancer", "balancer.yaml"),
            ("node, lite0-128", "node", "node-kiosk.yaml"),
            ("node, lite0-224", "node", "node-depot.yaml"),
            ("node, lite2", "node", "node-vault.yaml"),
            ("relay", "relay", "relay.yaml"),
        ):
            runs = [start(engine, image, role, folder / file) for _ in range(times)]
            said, healthy, memory = (statistics.median(each) for each in zip(*runs, strict=True))
            found["roles"][what] = {
                "ready_s": said, "healthy_s": healthy, "memory_mb": memory / 1e6,
            }  # fmt: skip
    return found


def show(found: dict[str, Any], console: Console) -> None:
    console.print(f"{found['image']} by {found['engine']}: {found['size_mb']:.0f} MB")
    table = Table("part", "MB", box=None)
    rest = found["size_mb"] - sum(found["parts_mb"].values())
    for name, size in (*found["parts_mb"].items(), ("other libraries", rest)):
        table.add_row(name, f"{size:.0f}")
    console.print(table)
    table = Table("role", "ready after s", "healthy after s", "memory MB", box=None)
    for name, role in found["roles"].items():
        row = (f"{role[key]:.1f}" for key in ("ready_s", "healthy_s"))
        table.add_row(name, *row, f"{role['memory_mb']:.0f}")
    console.print(table)


def markdown(found: dict[str, Any]) -> str:
    """The tables of docs/deploy.md."""
    rest = found["size_mb"] - sum(found["parts_mb"].values())
    lines = [
        f"{found['size_mb']:.0f} MB by {found['engine']}, on the base that deploy/image.sh found; "
        f"{found['cores']} cores, on which {found['load']:.0f} processes wanted to run meanwhile.",
        "",
        "| part | MB |",
        "|---|---|",
        *(f"| {name} | {size:.0f} |" for name, size in found["parts_mb"].items()),
        f"| other libraries | {rest:.0f} |",
        "",
        "| role | ready after s | healthy after s | memory MB |",
        "|---|---|---|---|",
        *(
            f"| {name} | {r['ready_s']:.1f} | {r['healthy_s']:.1f} | {r['memory_mb']:.0f} |"
            for name, r in found["roles"].items()
        ),
    ]
    return "\n".join(lines)


def write_docs(found: dict[str, Any]) -> None:
    begin, end = "<!-- containers: begin -->", "<!-- containers: end -->"
    text = DOCUMENT.read_text("utf-8")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    DOCUMENT.write_text(f"{before}{begin}\n{markdown(found)}\n{end}{after}", "utf-8")


def main() -> None:
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--image", default="localhost/edgewise:latest")
    parser.add_argument("--times", type=int, default=3, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--docs", action="store_true")
    wishes = parser.parse_args()
    found = measure(wishes.image, wishes.times)
    show(found, Console())
    if wishes.docs:
        write_docs(found)
    if wishes.json is not None:
        wishes.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
