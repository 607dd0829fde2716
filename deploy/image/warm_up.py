"""Compile everything that a balancer and a node run, for every policy, into NUMBA_CACHE_DIR.

Run when the image is built, with the processor fixed to the architecture's baseline
(NUMBA_CPU_NAME=generic), so that the cache fits every machine of it. It also imports what the roles
import, so that a file missing in the image is noticed.
"""

import importlib
import time

from edgewise.live.balancer.balancer_process import warm_up
from edgewise.policies import POLICIES, make
from edgewise.scenario import load
from edgewise.testing.drill import run_drill

for role in ("node", "relay", "client", "evaluate"):
    importlib.import_module(f"edgewise.cli.{role}")
for module in (
    "live.node.node_process",
    "live.client.client_process",
    "live.run.evaluation",
    "network.relay.relay",
):
    importlib.import_module(f"edgewise.{module}")
scenario = load("smoke")
for name in POLICIES:
    start = time.monotonic()
    warm_up(scenario, make(name, 0), 0.0)
    print(f"{name}: {time.monotonic() - start:.1f} s", flush=True)
start = time.monotonic()
run_drill(seed=1, requests=50)  # whole nodes, which warm up by themselves
print(f"nodes: {time.monotonic() - start:.1f} s", flush=True)
