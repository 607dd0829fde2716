"""Training decisions per second, end to end: worlds made, played and learned from.

    python benchmarks/training.py [--family medium] [--threads 2] [--seconds 30] [--json FILE]

Runs evolution strategies (`edgewise train`), PPO (linear heads, then with the network) and
Stable-Baselines3's MaskablePPO on ``edgewise/Balance-v0``, one after the other on the same family.
The first round of each is not counted, because numba compiles in it.

*of wall* is by the clock. On a machine with other work that says little, so *of CPU* gives
decisions per second of this process's CPU time × threads, which is what it would do with the cores
to itself. Stable-Baselines3 has one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path

from edgewise.cli.failures import in_one_line
from edgewise.learn.es import EsSettings, EvolutionStrategies
from edgewise.learn.ppo_settings import PpoSettings
from edgewise.learn.search import Algorithm, Budget, Progress, search
from edgewise.learn.train import beginning
from edgewise.sim.source import WorldSource

with in_one_line():
    import torch

    from edgewise.learn.ppo import Ppo

Speeds = tuple[float, float]
"""Decisions per s of wall time, and of CPU time × threads."""


class Meter:
    """Counts decisions against both clocks, from the end of the first step on."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._first: tuple[float, float, int] | None = None
        self.speeds: Speeds = (0.0, 0.0)

    def see(self, progress: Progress) -> None:
        """Take in a step."""
        now = (time.perf_counter(), time.process_time(), progress.decisions)
        if self._first is None:
            self._first = now
            return
        wall, cpu, decisions = (b - a for a, b in zip(self._first, now, strict=True))
        self.speeds = (decisions / wall, self._threads * decisions / cpu)


def of_search(algorithm: Algorithm, threads: int, seconds: float) -> Speeds:
    """The speed of one of our algorithms."""
    meter = Meter(threads)
    search(algorithm, Budget(seconds=seconds), progress=meter.see)
    return meter.speeds


def of_stable_baselines(family: str, threads: int, seconds: float) -> Speeds:
    """The speed of MaskablePPO.

    Torch has one thread, which is faster for its small batches than two that wait for each other on
    a busy machine. The environments run one after the other.
    """
    torch.set_num_threads(1)
    path = Path(__file__).parent.parent / "examples" / "maskable_ppo.py"
    spec = importlib.util.spec_from_file_location("maskable_ppo", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    _, speed = example.train(None, family, 2048, envs=8)
    cpu = time.process_time()
    model, speed = example.train(None, family, int(speed * seconds), envs=8)
    return speed, model.num_timesteps / (time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="medium")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each, by the clock")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    threads, seconds = options.threads, options.seconds
    source, (start, _) = WorldSource(family=options.family), beginning()

    def of_es() -> Speeds:
        settings = EsSettings(pairs=1)
        return of_search(EvolutionStrategies(source, start, settings, threads), threads, seconds)

    def of_ppo(network: bool) -> Speeds:
        settings = PpoSettings(network=network)
        return of_search(Ppo(source, start, settings, threads), threads, seconds)

    runs: dict[str, Callable[[], Speeds]] = {
        "evolution strategies": of_es,
        "PPO, linear heads": lambda: of_ppo(False),
        "PPO, with the network": lambda: of_ppo(True),
        "SB3 MaskablePPO": lambda: of_stable_baselines(options.family, threads, seconds),
    }
    found = {}
    print(f"{'training decisions/s':<22} {'of wall':>10} {'of CPU':>10}   ({threads} threads)")
    for name, run in runs.items():
        found[name] = run()
        print(f"{name:<22} {found[name][0]:>10,.0f} {found[name][1]:>10,.0f}", flush=True)
    base = found["SB3 MaskablePPO"]
    for name, (wall, cpu) in found.items():
        print(f"{name}: {wall / base[0]:.1f} × SB3 by the clock, {cpu / base[1]:.1f} × by CPU")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    with in_one_line():
        main()
