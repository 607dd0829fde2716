"""The event loop. Compiled.

`advance` runs the world to the next decision and fills the candidate table, `act` chooses a row of
it, and `run` repeats both with a policy until the end. `branch` copies a simulation: two copies
that choose different rows meet the same arrivals, links and noise from there on.

At equal times the scenario's script (failures, link changes) comes first, then events in the order
in which they were made, then arrivals.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from edgewise.compile import as_pointer, by_reference, jit_no_refcount
from edgewise.fleet.admission import keep_if_idle
from edgewise.fleet.arrays import Array, Belief
from edgewise.fleet.belief import on_request
from edgewise.fleet.commit import commit
from edgewise.fleet.ejection import only_for_probe
from edgewise.fleet.observe import observe
from edgewise.fleet.retries import ALTERNATIVES
from edgewise.fleet.rng import new_rng
from edgewise.fleet.table import TableArrays, best_row, blank_table, named
from edgewise.network.impairments import PARAMETERS
from edgewise.policies.base import Describe, Kernel, Learn
from edgewise.sim.events import index_of, kind_of, next_time, pop
from edgewise.sim.layout import (
    CONSTANTS,
    DONE,
    E_COMMAND,
    E_DELIVERED,
    E_FAILED,
    E_FINISH,
    E_JOINED,
    E_LEFT,
    E_METADATA,
    E_OUTCOME,
    E_REPORTED,
    E_SWEEP,
    E_TIMEOUT,
    E_UPLOADED,
    OPEN,
    REASON_HORIZON,
    REASON_NO_SERVICE,
    REASON_NONE_UP,
    REASON_PRICE,
    S_LINK_CHANGE,
    S_MISBEHAVE,
    S_MUTE,
    S_SERVER_DOWN,
    S_UNMUTE,
    Reports,
    Sim,
    World,
    belief_of,
)
from edgewise.sim.links import schedule, update_link
from edgewise.sim.next_times import first_due
from edgewise.sim.reports import (
    belief_view,
    forget_dispatches,
    make_report,
    on_joined,
    on_left,
    on_outcome_known,
    on_reported,
    restart,
    stop,
)
from edgewise.sim.retries import on_failed, on_timeout_check
from edgewise.sim.routes import (
    on_command,
    on_delivered,
    on_finish,
    on_link,
    on_metadata,
    on_uploaded,
    schedule_command,
    start_upload,
)
from edgewise.sim.silent_balancer import defer_to_ingress, end_silence
from edgewise.sim.slots import drop_reference, lose, open_slot, refuse_arrival


@jit_no_refcount
def advance(sim: Sim) -> int:
    """Run to the next decision; returns the number of its request, −1 at the end.

    `sim.table` is then filled, and `sim.world.clock["now"]` is the time of the decision.
    """
    return run_to_decision(by_reference(sim))


@jit_no_refcount(inline=True, internal=True)
def next_arrival(sim: Sim) -> float:
    """Arrival time of the next request; inf after the last."""
    r = sim.world.clock[0].next
    time: float = sim.world.requests[r].time if r < sim.world.requests.size else math.inf
    return time


@jit_no_refcount(inline=True, internal=True)
def next_line(sim: Sim) -> float:
    """Time of the next line of the script; inf after the last."""
    n = sim.world.clock[0].line
    time: float = sim.script[n].time if n < sim.script.size else math.inf
    return time


@jit_no_refcount(internal=True)
def run_to_decision(sim: Sim) -> int:
    """Do as `advance`, for compiled code that has a reference to the simulation."""
    clock = sim.world.clock[0]
    settings = sim.world.settings[0]
    arrival = next_arrival(sim)
    line = next_line(sim)
    while True:
        if arrival == math.inf and clock.open == 0:
            return -1
        queued = next_time(sim.world)
        rescheduled: float = sim.world.next_times[1]
        event = queued if queued <= rescheduled else rescheduled
        now = event if event < arrival else arrival
        if line < now:
            now = line
        if now > settings.horizon:
            clock.now = settings.horizon
            for i in range(clock.used):
                if sim.world.slots[i].stage == OPEN:
                    lose(sim.world, i, REASON_HORIZON, clock.now)
            return -1
        clock.now = now
        if line == now:
            apply_script_line(sim, now)
            line = next_line(sim)
            continue
        if event > now:
            r = clock.next
            clock.next = r + 1
            arrival = next_arrival(sim)
            if sim.world.servers[sim.world.requests[r].ingress].up == 0:
                refuse_arrival(sim.world, r)
                continue
            i = open_slot(sim.world, r)
            if i < 0:
                clock.overflow = 1
                return -1
            start_upload(sim.world, i, now)
            continue
        clock.processed += 1
        if queued > now:
            on_next_time(sim, now)
            continue
        code = pop(sim.world)
        kind = kind_of(code)
        index = index_of(code)
        if kind == E_METADATA:
            on_metadata(sim.world, index, now)
            if sim.world.slots[index].stage != DONE and not defer_to_ingress(sim, index, now):
                observe_request(sim, index, now)
                request: int = sim.world.slots[index].request
                return request
            drop_reference(sim.world, index)
        elif kind == E_FINISH:
            on_finish(sim.world, index, now)
        elif kind == E_REPORTED:
            on_reported(sim, index, now)
        elif kind == E_SWEEP:
            forget_dispatches(sim, now)
        elif kind == E_LEFT:
            on_left(sim.world, sim.beliefs, index)
        elif kind == E_JOINED:
            on_joined(sim.world, sim.beliefs, index, now)
        elif kind == E_TIMEOUT:
            on_timeout_check(sim.world, index, now)
        else:
            if kind == E_COMMAND:
                on_command(sim.world, index, now)
            elif kind == E_UPLOADED:
                on_uploaded(sim.world, index, now)
            elif kind == E_DELIVERED:
                on_delivered(sim.world, index, now)
            elif kind == E_OUTCOME:
                on_outcome_known(sim, index, now)
            elif kind == E_FAILED:
                on_failed(sim.world, index, now)
            drop_reference(sim.world, index)


@jit_no_refcount(inline=True, internal=True)
def on_next_time(sim: Sim, now: float) -> None:
    """Handle the link or the server whose time is the earliest."""
    world = sim.world
    i = first_due(world)
    s = i - world.links.size
    if s < 0:
        on_link(world, i, now)
    else:
        make_report(world, sim.reports, s, now)


@jit_no_refcount(inline=True, internal=True)
def observe_request(sim: Sim, i: int, now: float) -> None:
    """Count the arrival of slot `i`'s metadata at its balancer, and fill the candidate table."""
    clock = sim.world.clock[0]
    settings = sim.world.settings[0]
    slot = sim.world.slots[i]
    clock.current = i
    b = slot.balancer
    belief = sim.belief if b == 0 else by_reference(belief_view(sim.beliefs, b))
    on_request(belief, slot.ingress, now)
    observe(
        belief,
        sim.table,
        now,
        slot.ingress,
        slot.sent,
        sim.world.requests[slot.request].deadline,
        slot.demanded,
        slot.payload,
        math.nan,
        settings.grace,
        settings.accuracy_weight,
    )


@jit_no_refcount(internal=True)
def chosen_row(sim: Sim) -> int:
    """The row that the table's scores choose, unless an idle fleet can answer what they shed."""
    row = best_row(sim.table)
    if row == sim.table.mask.size - 1:
        b = sim.world.slots[sim.world.clock[0].current].balancer
        belief = sim.belief if b == 0 else by_reference(belief_view(sim.beliefs, b))
        if keep_if_idle(belief, sim.table):
            row = best_row(sim.table)
    return row


@jit_no_refcount
def choose(sim: Sim) -> int:
    """Do as `chosen_row`, for a policy that is not compiled."""
    return chosen_row(by_reference(sim))


@jit_no_refcount
def act(sim: Sim, row: int, probability: float) -> None:
    """Decide the request at which `advance` stopped by `row` of its table; the last row sheds.

    The row must be admissible. `probability` is the propensity that the results record.
    """
    choose_row(by_reference(sim), row, probability)


@jit_no_refcount(internal=True)
def choose_row(sim: Sim, row: int, probability: float) -> None:
    """Do as `act`, for compiled code that has a reference to the simulation."""
    clock = sim.world.clock[0]
    settings = sim.world.settings[0]
    now = clock.now
    i = clock.current
    slot = sim.world.slots[i]
    clock.current = -1
    clock.decisions += 1
    b = slot.balancer
    belief = sim.belief if b == 0 else by_reference(belief_view(sim.beliefs, b))
    command, dispatch, rif = commit(belief, sim.table, row, now, slot.deadline)
    slot.row = row
    slot.probability = probability
    slot.decided = now
    slot.command = command
    slot.dispatch = dispatch
    slot.rif = rif
    if row == sim.table.mask.size - 1:
        slot.reason = why_shed(sim)
        if slot.reason != REASON_PRICE:
            slot.probability = 1.0  # there was no choice
    else:
        slot.predicted = sim.table.rows.latency[row]
        slot.work = sim.table.rows.service_time[row]
        slot.service = row // 2
        slot.form = row % 2
        slot.server = sim.world.services[row // 2].server
        slot.picked = slot.server
        slot.life = sim.world.servers[slot.server].known_life
        if settings.can_fail != 0:
            sim.world.servers[slot.ingress].first_tries += 1.0
    schedule_command(sim.world, i, now + settings.control_delay)
    drop_reference(sim.world, i)  # of the metadata event


@jit_no_refcount(internal=True)
def why_shed(sim: Sim) -> int:
    """The reason why the table's request is shed, as in `policies.base.decision`."""
    table = sim.table
    good = False
    for r in range(table.mask.size - 1):
        if table.mask[r] != 0:
            return REASON_PRICE
        if table.rows.accuracy[r] >= table.context.accuracy:
            good = True
    return REASON_NONE_UP if good else REASON_NO_SERVICE


@jit_no_refcount(internal=True)
def no_alternative(sim: Sim, row: int, r: int, count: int) -> bool:
    """Whether the server of row `r` is that of `row` or of the first `count` alternatives, or is
    ejected."""
    s = sim.world.services[r // 2].server
    slot = sim.world.slots[sim.world.clock[0].current]
    same: bool = s == sim.world.services[row // 2].server
    for a in range(count):
        same = same or sim.world.services[slot.alternatives[a] // 2].server == s
    if same:
        return True
    b = slot.balancer
    belief = sim.belief if b == 0 else by_reference(belief_view(sim.beliefs, b))
    ejected: bool = only_for_probe(belief, slot.ingress, s)
    return ejected


@jit_no_refcount(internal=True)
def keep_alternatives(sim: Sim, row: int) -> None:
    """Keep the best rows after `row` as alternatives, each on a server of its own."""
    slot = sim.world.slots[sim.world.clock[0].current]
    table = sim.table
    shed = table.mask.size - 1
    last = table.scores[row]
    before = row
    for a in range(ALTERNATIVES):
        best = -1
        for r in range(shed):
            if table.mask[r] == 0 or r == row or table.scores[r] < table.scores[shed]:
                continue
            if no_alternative(sim, row, r, a):
                continue
            score = table.scores[r]
            if score == -math.inf or score > last or (score == last and r <= before):
                continue
            if best < 0 or score > table.scores[best]:
                best = r
        slot.alternatives[a] = best
        if best < 0:
            return
        last = table.scores[best]
        before = best


@jit_no_refcount(internal=True)
def apply_script_line(sim: Sim, now: float) -> None:
    """Apply the next line of the script."""
    clock = sim.world.clock[0]
    line = sim.script[clock.line]
    clock.line += 1
    if line.kind == S_LINK_CHANGE:
        link = sim.world.links[line.index]
        update_link(sim.world, line.index, now)
        link.mode = line.mode
        link.rate = line.rate
        link.curve_at = line.curve_at
        link.curve_count = line.curve_count
        link.curve_period = line.curve_period
        link.delay = line.delay
        for n in range(PARAMETERS):
            link.impairments[n] = line.impairments[n]
        schedule(sim.world, line.index)
    elif line.kind == S_SERVER_DOWN:
        stop(sim.world, line.index, now)
    elif line.kind == S_MISBEHAVE:
        sim.world.servers[line.index].misbehaves = line.misbehaves
    elif line.kind == S_MUTE:
        clock.mute_since = now
    elif line.kind == S_UNMUTE:
        end_silence(sim.world, now)
    else:
        restart(sim.world, line.index, now)


@jit_no_refcount
def run(sim: Sim, kernel: Any, params: Array, memory: Array, rng: Array, decisions: int) -> int:
    """Let a kernel (from `compiled`) decide until the end, or for `decisions` decisions (−1: all).

    `memory` (B, n) and `rng` (B, 1) have a row per balancer. Returns the number of decisions.
    """
    sim = by_reference(sim)
    shed = sim.table.mask.size - 1
    done = 0
    while done != decisions and run_to_decision(sim) >= 0:
        b = sim.world.slots[sim.world.clock[0].current].balancer
        sim.table.scores[shed] = -math.inf
        probability = kernel(sim.table, params, memory[b], rng[b])
        row = chosen_row(sim)
        if sim.world.settings[0].can_fail != 0:
            keep_alternatives(sim, row)
        choose_row(sim, row, probability)
        done += 1
    return done


@jit_no_refcount
def run_learning(
    sim: Sim,
    kernel: Any,
    describe: Any,
    learn: Any,
    params: Array,
    memory: Array,
    rng: Array,
    features: Array,
    decisions: int,
) -> int:
    """Do as `run` for a policy that learns online; `features` (M, n) has a row per slot.

    The policy learns from a request when its outcome reaches the balancer, always before the next
    decision.
    """
    sim = by_reference(sim)
    world = sim.world
    clock = world.clock[0]
    settings = world.settings[0]
    shed = sim.table.mask.size - 1
    clock.learning = 1
    done = 0
    while done != decisions:
        going = run_to_decision(sim)
        for n in range(clock.feedback_count):
            j: int = world.slots[n].feedback_slot
            slot = world.slots[j]
            learn(params, memory[slot.balancer], features[j], slot.utility)
            drop_reference(world, j)
        clock.feedback_count = 0
        if going < 0:
            return done
        i: int = clock.current
        b = world.slots[i].balancer
        sim.table.scores[shed] = -math.inf
        probability = kernel(sim.table, params, memory[b], rng[b])
        row = chosen_row(sim)
        describe(sim.table, row, features[i])
        if settings.can_fail != 0:
            keep_alternatives(sim, row)
        choose_row(sim, row, probability)
        done += 1
    return done


@jit_no_refcount
def decide(sim: Sim, row: int, probability: float) -> None:
    """Do as `act` for a policy that is not compiled. The alternatives come from the table's
    scores."""
    sim = by_reference(sim)
    if sim.world.settings[0].can_fail != 0:
        keep_alternatives(sim, row)
    choose_row(sim, row, probability)


@jit_no_refcount
def drop_feedback(sim: Sim) -> None:
    """Release the slots of requests that the policy has learned from."""
    clock = sim.world.clock[0]
    for n in range(clock.feedback_count):
        j: int = sim.world.slots[n].feedback_slot
        drop_reference(sim.world, j)
    clock.feedback_count = 0


def compiled(kernel: Kernel) -> Any:
    """Compile a policy's kernel for `run`."""
    return as_pointer(kernel, float, _TABLE, _FLOATS, _FLOATS, new_rng(0))


def compiled_learner(describe: Describe, learn: Learn) -> tuple[Any, Any]:
    """Compile the other two kernels of a policy that learns, for `run_learning`."""
    return (
        as_pointer(describe, None, _TABLE, 0, _FLOATS),
        as_pointer(learn, None, _FLOATS, _FLOATS, _FLOATS, 0.0),
    )


_TABLE, _FLOATS = blank_table(1, 1), np.zeros(1)  # examples


def branch(sim: Sim, memory: Array | None = None) -> Sim:
    """Copy a simulation. Both copies meet the same arrivals, links and noise from here on.

    Constant arrays are shared. A copy is small unless the simulation keeps results
    (`SimOptions.store`), which take a record per request of the trace. `memory` (uint8,
    `bytes_of(sim)` bytes) receives the arrays of the copy, one after the other; None allocates
    them.
    """
    used = 0

    def copy(array: Array) -> Array:
        nonlocal used
        if memory is None:
            return array.copy(order="K")
        begin, used = used, used + in_lines(array)
        order: Literal["F", "C"] = "F" if in_columns(array) else "C"
        out = np.ndarray(array.shape, array.dtype, memory, begin, order=order).view(type(array))
        np.copyto(as_bytes(out), as_bytes(array))
        return out

    def copies(arrays: World | Reports | Belief | TableArrays) -> dict[str, Array]:
        return {
            name: array if name in CONSTANTS else copy(array)
            for name, array in arrays._asdict().items()
        }

    beliefs = Belief(**copies(sim.beliefs))
    return Sim(
        world=World(**copies(sim.world)),
        script=sim.script,
        reports=Reports(**copies(sim.reports)),
        beliefs=beliefs,
        belief=belief_of(beliefs, 0),
        table=named(TableArrays(**copies(sim.table.arrays))),
    )


CACHE_LINE = 64
"""Bytes of a line of a processor's cache."""


def in_lines(array: Array) -> int:
    """Bytes of an array, rounded up to whole cache lines."""
    return -(-array.nbytes // CACHE_LINE) * CACHE_LINE


def bytes_of(sim: Sim) -> int:
    """The bytes of memory that a branch of `sim` takes."""
    parts = (sim.world, sim.reports, sim.beliefs, sim.table.arrays)
    arrays = [each for part in parts for each in part._asdict().items()]
    return sum(in_lines(array) for name, array in arrays if name not in CONSTANTS)


class BranchCopier:
    """Copies the state of `source` to `target`, a branch of the same simulation, at each call.

    The arrays have room for thousands of open requests and for lists of hundreds of jobs. Only the
    parts that one of the two simulations has used are copied.
    """

    def __init__(self, target: Sim, source: Sim) -> None:
        self.target, self.source = target, source
        self._whole: list[tuple[Array, Array]] = []
        self._begun: list[tuple[str, int, Array, Array]] = []  # counted how, bytes of each, to, of
        slots = len(source.world.slots)
        parts: dict[str, tuple[Any, Any]] = {
            "world": (target.world, source.world),
            "reports": (target.reports, source.reports),
            "beliefs": (target.beliefs, source.beliefs),
            "table": (target.table.arrays, source.table.arrays),
        }
        for part, (to, of) in parts.items():
            for name, array in zip(of._fields, of, strict=True):
                if name in CONSTANTS:
                    continue
                pair = as_bytes(getattr(to, name)), as_bytes(array)
                if name in ("slots", "nodes", "flows"):  # one, three, two for each slot
                    one, other = (each.reshape(-1, slots * array.itemsize) for each in pair)
                    self._begun.append(("slots", array.itemsize, one, other))
                elif name in ("events", "flights", "sends"):
                    self._begun.append((name, array.itemsize, *pair))
                elif name == "jobs":
                    self._begun.append((f"jobs of {part}", array.itemsize, *pair))
                else:
                    self._whole.append(pair)

    def __call__(self) -> None:
        target, source = self.target.world.clock[0], self.source.world.clock[0]
        servers, reports = self.source.beliefs.servers, self.source.reports.heads
        counts = {
            "slots": max(int(target["used"]), int(source["used"])),
            "events": max(1, int(source["events"])),  # the first record also marks an empty heap
            "flights": int(servers["flights"].max(initial=0)),
            "sends": int(servers["sends"].max(initial=0)),
            "jobs of beliefs": int(servers["jobs"].max(initial=0)),
            "jobs of reports": int(reports["queued"].max(initial=0)),
        }
        for to, of in self._whole:
            np.copyto(to, of)
        for what, size, to, of in self._begun:
            end = counts[what] * size
            np.copyto(to[..., :end], of[..., :end])


def in_columns(array: Array) -> bool:
    """Whether an array is in Fortran's order."""
    return array.flags.f_contiguous and not array.flags.c_contiguous


def as_bytes(array: Array) -> Array:
    """A view of an array as bytes, which NumPy copies at once; it copies records field by field."""
    return (array.T if in_columns(array) else array).view(np.uint8)
