"""Print what the image costs: its size by part, time from start to ready, memory.

    python benchmarks/containers.py [--image NAME] [--times N] [--json FILE] [--docs]

Starts a container for each role as deploy/fleet.sh does, but without a limit on CPU, and times it
from `run` to the process's own ready line and to the first success of the image's health check.
Memory is the container's, as the engine counts it, 5 s after it is ready; a node has one model.
Prints medians of N starts. --docs also rewrites the tables of docs/deploy.md. Uses docker or
podman, whichever is installed; takes about a minute.
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

from edgewise.benchmark.document import rewrite
from edgewise.cli.failures import in_one_line

with in_one_line():
    from edgewise.live.run.containers import DEFAULT_IMAGE, ContainerEngine

DEPLOY = Path(__file__).parents[1] / "deploy"
DOCUMENT = DEPLOY.parent / "docs" / "deploy.md"
NAME = f"edgewise-bench-{os.getpid()}"
SETTLE = 5.0
"""s until memory is read; the first reports have been sent by then."""
PARTS = (
    ("base image, with Python", "/usr /var /etc"),
    ("llvmlite (numba's compiler)", "/opt/edgewise/lib/python3*/site-packages/llvmlite"),
    ("pyarrow", "/opt/edgewise/lib/python3*/site-packages/pyarrow"),
    ("ONNX Runtime", "/opt/edgewise/lib/python3*/site-packages/onnxruntime"),
    ("numpy", "/opt/edgewise/lib/python3*/site-packages/numpy*"),
    ("models", "/opt/edgewise-app/cache"),
    ("compiled code", "/opt/edgewise-app/numba"),
    ("edgewise itself", "/opt/edgewise-app/lib"),
)


class Engine(ContainerEngine):
    """docker or podman, called synchronously."""

    @property
    def name(self) -> str:
        return Path(self.command).name

    def __call__(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [self.command, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=self.environment,
        )
        if check and done.returncode != 0:
            raise SystemExit(f"{self.name} {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout + done.stderr


def parts(engine: Engine, image: str) -> dict[str, float]:
    """MB by part of the image, as `du` counts them."""
    sizes = {}
    for name, paths in PARTS:
        output = engine("run", "--rm", "--pull", "never", "--network", "none", "--entrypoint", "sh",
                      image, "-c", f"du -scx {paths} 2>/dev/null | tail -1")  # fmt: skip
        match = re.search(r"(\d+)\s+total", output)
        sizes[name] = int(match[1]) * 1024 / 1e6 if match else 0.0
    return sizes


def start(engine: Engine, image: str, role: str, config: Path) -> tuple[float, float, float]:
    """Seconds to the ready line and to healthy, and bytes of memory, of one container."""
    began = time.monotonic()
    engine("run", "--detach", "--pull", "never", "--name", NAME, "--read-only", "--tmpfs", "/tmp",
           "--volume", f"{config.parent}:/etc/edgewise:ro",
           image, role, f"/etc/edgewise/{config.name}")  # fmt: skip
    try:
        ready = healthy = 0.0
        while not healthy:
            if time.monotonic() > began + 120:
                raise SystemExit(f"{role} was not ready in two minutes:\n{engine('logs', NAME)}")
            if not ready and '"ready"' in engine("logs", NAME):
                ready = time.monotonic() - began
            if ready and "ok" in engine("exec", NAME, "sh", "-c", "edgewise-health && echo ok",
                                       check=False):  # fmt: skip
                healthy = time.monotonic() - began
        time.sleep(SETTLE)
        usage = engine("stats", "--no-stream", "--format", "{{.MemUsage}}", NAME)
        match = re.search(r"([\d.]+)\s*([kMG]?)i?B\s*/", usage)
        assert match, usage
        unit = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}[match[2]]
        return ready, healthy, float(match[1]) * unit
    finally:
        engine("rm", "--force", NAME)


def measure(image: str, times: int) -> dict[str, Any]:
    scratch = tempfile.TemporaryDirectory()
    engine = Engine(Path(scratch.name), image)
    size = int(engine("image", "inspect", "--format", "{{.Size}}", image).strip().splitlines()[0])
    costs: dict[str, Any] = {
        "image": image,
        "engine": engine.name,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "size_mb": size / 1e6,
        "parts_mb": parts(engine, image),
        "roles": {},
    }
    with scratch:
        folder = Path(scratch.name) / "config"
        shutil.copytree(DEPLOY / "compose" / "emulated", folder)
        for readable in (folder.parent, folder):
            readable.chmod(0o755)
        # A process alone finds none of the hosts in its file: it looks for one when a photo comes.
        for name, role, file in (
            ("balancer", "balancer", "balancer.yaml"),
            ("node, lite0-128", "node", "node-kiosk.yaml"),
            ("node, lite0-224", "node", "node-depot.yaml"),
            ("node, lite2", "node", "node-vault.yaml"),
            ("relay", "relay", "relay.yaml"),
        ):
            runs = [start(engine, image, role, folder / file) for _ in range(times)]
            ready, healthy, memory = (statistics.median(each) for each in zip(*runs, strict=True))
            costs["roles"][name] = {
                "ready_s": ready, "healthy_s": healthy, "memory_mb": memory / 1e6,
            }  # fmt: skip
    return costs


def show(costs: dict[str, Any], console: Console) -> None:
    console.print(f"{costs['image']} by {costs['engine']}: {costs['size_mb']:.0f} MB")
    table = Table("part", "MB", box=None)
    rest = costs["size_mb"] - sum(costs["parts_mb"].values())
    for name, size in (*costs["parts_mb"].items(), ("other libraries", rest)):
        table.add_row(name, f"{size:.0f}")
    console.print(table)
    table = Table("role", "ready after s", "healthy after s", "memory MB", box=None)
    for name, role in costs["roles"].items():
        row = (f"{role[key]:.1f}" for key in ("ready_s", "healthy_s"))
        table.add_row(name, *row, f"{role['memory_mb']:.0f}")
    console.print(table)


def markdown(costs: dict[str, Any]) -> str:
    """The tables of docs/deploy.md."""
    rest = costs["size_mb"] - sum(costs["parts_mb"].values())
    lines = [
        f"{costs['size_mb']:.0f} MB by {costs['engine']}, on the base that deploy/image.sh found; "
        f"{costs['cores']} cores, load {costs['load']:.0f} meanwhile.",
        "",
        "| part | MB |",
        "|---|---|",
        *(f"| {name} | {size:.0f} |" for name, size in costs["parts_mb"].items()),
        f"| other libraries | {rest:.0f} |",
        "",
        "| role | ready after s | healthy after s | memory MB |",
        "|---|---|---|---|",
        *(
            f"| {name} | {r['ready_s']:.1f} | {r['healthy_s']:.1f} | {r['memory_mb']:.0f} |"
            for name, r in costs["roles"].items()
        ),
    ]
    return "\n".join(lines)


def main() -> None:
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--image", default=DEFAULT_IMAGE)
    parser.add_argument("--times", type=int, default=3, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--docs", action="store_true")
    options = parser.parse_args()
    costs = measure(options.image, options.times)
    show(costs, Console())
    if options.docs:
        rewrite(DOCUMENT, "containers", markdown(costs))
    if options.json is not None:
        options.json.write_text(json.dumps(costs, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with in_one_line():
        main()
