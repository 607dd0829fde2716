"""Tools for tests: the whole system on virtual time, and an independent simulator to compare with.

- `run_virtual`, `VirtualLoop`, `sleep_until`, `Deadlock`: an event loop whose time jumps to the
  next timer, so an hour of waiting takes milliseconds.
- `MemoryNetwork`, `MemoryTransport`, `MemoryRoute`, `SharedLink`: HTTP and control channels between
  parties in one process, over links that share their capacity.
- `LiveFleet`, `run_live`, `Disturbance`: client, balancer and nodes as they are deployed, on
  virtual time.
- `run_simulated`: the same trace in the simulator.
- `Transcript`, `differences`, `Difference`: what happened in a run, and where two runs differ.
- `run_drill`, `DrillResult`, `draw_plan`, `Fault`: the live system with random faults, checked.
- `Process`, `ProcessLoop`, `FaultyNetwork`: what a drill is made of.
- `run_oracle`, `OracleRequest`: a slow simulator in plain Python, written independently of the
  engine.

A policy behaves the same in both worlds:

>>> import msgspec
>>> from edgewise.scenario import load
>>> from edgewise.worlds.workload import generate
>>> scenario = load("smoke").with_overrides(duration=1.0)
>>> trace = generate(scenario, None)
>>> trace = msgspec.structs.replace(trace, time=trace.time + 1.5)  # every node has reported by then
>>> simulated = run_simulated(scenario, trace, "earliest_completion")
>>> live = run_live(scenario, trace, "earliest_completion")
>>> differences(simulated, live)
[]

`docs/testing.md` shows how to test a policy or a node of one's own. Needs the extra *live*.
"""

from edgewise.testing.drill import DrillResult, run_drill
from edgewise.testing.faults import Fault, draw_plan
from edgewise.testing.faulty_network import FaultyNetwork
from edgewise.testing.live_fleet import Disturbance, LiveFleet, make_node, run_live
from edgewise.testing.memory_transport import MemoryNetwork, MemoryRoute, MemoryTransport, url_of
from edgewise.testing.oracle import OracleRequest, run_oracle
from edgewise.testing.processes import Process, ProcessLoop
from edgewise.testing.shared_link import SharedLink
from edgewise.testing.simulated import run_simulated
from edgewise.testing.transcript import Difference, Transcript, differences
from edgewise.testing.virtual_loop import Deadlock, VirtualLoop, run_virtual, sleep_until

__all__ = [
    "Deadlock",
    "Difference",
    "Disturbance",
    "DrillResult",
    "Fault",
    "FaultyNetwork",
    "LiveFleet",
    "MemoryNetwork",
    "MemoryRoute",
    "MemoryTransport",
    "OracleRequest",
    "Process",
    "ProcessLoop",
    "SharedLink",
    "Transcript",
    "VirtualLoop",
    "differences",
    "draw_plan",
    "make_node",
    "run_drill",
    "run_live",
    "run_oracle",
    "run_simulated",
    "run_virtual",
    "sleep_until",
    "url_of",
]
