"""Many simulations side by side, one decision of each at a time. Compiled.

A *lane* plays one world after another. What comes in: a row of the candidate table per lane. What
goes out: per lane the table of its next decision, the scores that became known on the way, and
whether its trace is at its end. The environments are a thin shell around this.

How lanes are stepped by one compiled call: a simulation is a tuple of arrays whose sizes differ
from world to world, so there is no array of simulations. `BatchedSims` keeps the *addresses* of
each
lane's arrays in one integer table as numba lays a tuple down, and `sim_at` refers to it there
(`compile.addresses`). What must hold: the lane's arrays are alive and at the addresses in the table
(`BatchedSims.sims` holds them, `BatchedSims.put` is the only place where they change), and of the
types that
were compiled for, which `put` sees to. The lanes' own arrays come in the same way (`Buffers`), for
a step of one lane is short beside the handing over of a dozen arrays from Python.

Lanes share nothing, so blocks of them run in threads with the same bits on any number of threads.

Where an episode ends: at the first decision after which no request arrives any more. Its table is
the episode's final observation. It is never decided by whoever acts: it, and what else waits for a
decision at that moment (requests that came within the delay of their client's link), are shed, and
the world is played on until every score is known. So the sum of rewards is the sum of scores.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from edgewise.compile import address_words, jit_no_refcount, tuple_reader, type_of
from edgewise.fleet.arrays import Array, records
from edgewise.sim import engine
from edgewise.sim.env.observation import CONTEXT, ROW, SERVER, WIDTH, write_flat, write_parts
from edgewise.sim.layout import DONE, FREE, Sim
from edgewise.sim.play import TooManyOpenRequests
from edgewise.sim.slots import drop_reference
from edgewise.sim.source import WorldSource

RESET = -1
"""In place of a row: the lane's world has just been put there."""
SKIP = -2
"""In place of a row: leave the lane as it is."""
ANY = -(2**63)
"""For `BatchedSims.step`: no row is below the least."""

PARTS = ("rows", "server", "servers", "context", "action_mask")
CREDITS = ("env", "decision", "reward")

LANE = np.dtype(
    [
        ("decisions", "i8"),  # of this episode
        ("refused", "i8"),  # rows that were not admissible, and shed instead
        ("now", "f8"),  # of the decision that waits
        ("waited", "f8"),  # s between it and the one before; 0 at the first
        ("total", "f8"),  # sum of the scores known so far
        ("request", "i8"),  # number in the trace of the one that waits; −1 none
        ("balancer", "i8"),  # that decides it
        ("ended", "i8"),  # 1: the table is the episode's final observation
    ]
)


class Buffers(NamedTuple):
    """What N lanes are stepped with: R rows, S servers, and room for C open requests in each."""

    rows: Array  # int64 (N,), of this step
    lanes: Array  # LANE (N,)
    of: Array  # int64 (N, C): number of the decision in each slot, −1 none or credited
    mask: Array  # int8 (N, R)
    flat: Array  # float32 (N, R, WIDTH), or (N, 0, WIDTH) where they are shown in parts
    # The first four of `PARTS`; rows (N, columns, R), as the table has them.
    parts: tuple[Array, Array, Array, Array]
    rewards: Array  # float64 (N,)
    # The scores that became known in this step, (N × C,), one after the other in order of the
    # lanes; those of a block begin where the room of its first lane does.
    whose: Array  # int64: the lane
    which: Array  # int64: its decision
    worth: Array  # float64


def new_buffers(count: int, servers: int, rows: int, room: int, wide: bool) -> Buffers:
    """For lanes that have played nothing; `wide`: shown as `flat`."""
    return Buffers(
        rows=np.zeros(count, np.int64),
        lanes=records(count, LANE),
        of=np.full((count, room), -1, np.int64),
        mask=np.zeros((count, rows), np.int8),
        flat=np.zeros((count, rows if wide else 0, WIDTH), np.float32),
        parts=(
            np.zeros((count, len(ROW), rows), np.float32),
            np.full((count, rows), -1, np.int32),
            np.zeros((count, servers, len(SERVER)), np.float32),
            np.zeros((count, len(CONTEXT)), np.float32),
        ),
        rewards=np.zeros(count),
        whose=np.zeros(count * room, np.int64),
        which=np.zeros(count * room, np.int64),
        worth=np.zeros(count * room),
    )


@cache
def example_sim() -> Sim:
    """A simulation. All have the same type, for they differ in sizes only."""
    return WorldSource(family="light", duration=1e-3).world(0)


def example_buffers() -> Buffers:
    """Buffers; all have the same type."""
    return new_buffers(1, 1, 1, 1, wide=True)


sim_at = tuple_reader(example_sim)
buffers_at = tuple_reader(example_buffers)


@jit_no_refcount(inline=True, internal=True)
def credit(sim: Sim, own: Buffers, lane: int, i: int, n: int) -> int:
    """Slot `i`'s score is known: note it as the `n`-th of this step; returns how many there are."""
    decision = own.of[lane, i]
    if decision < 0:
        return n
    worth = sim.world.slots[i].utility
    own.whose[n] = lane
    own.which[n] = decision
    own.worth[n] = worth
    own.rewards[lane] += worth
    own.of[lane, i] = -1
    return n + 1


@jit_no_refcount(inline=True, internal=True)
def hear(sim: Sim, own: Buffers, lane: int, n: int) -> int:
    """Note the scores that the balancers have heard of since the last time."""
    clock = sim.world.clock[0]
    for c in range(clock.feedback_count):
        j: int = sim.world.slots[c].feedback_slot
        n = credit(sim, own, lane, j, n)
        drop_reference(sim.world, j)
    clock.feedback_count = 0
    return n


@jit_no_refcount(internal=True)
def play_out(sim: Sim, own: Buffers, lane: int, going: int, n: int) -> int:
    """Shed what still waits for a decision and play until every score is known."""
    shed = sim.table.mask.size - 1
    while going >= 0:
        engine.choose_row(sim, shed, 1.0)
        going = engine.run_to_decision(sim)
        n = hear(sim, own, lane, n)
    # The world stops when the last request has ended, with word of it still under way.
    for i in range(sim.world.clock[0].used):
        if sim.world.slots[i].stage == DONE or sim.world.slots[i].stage == FREE:
            n = credit(sim, own, lane, i, n)
    return n


@jit_no_refcount
def step_block(
    buffers: Array, addresses: Array, least: int, first: int, last: int
) -> tuple[int, int, int]:
    """Step lanes `first` … `last` − 1 by their rows, of which those below `least` are taken for it.

    `buffers` (1, ·) and `addresses` (N, ·) are the words of `Buffers` and of the simulations.
    Returns the first lane that ran out of slots, −1 if none did; how many lanes are at their end;
    and how many scores became known.
    """
    own: Buffers = buffers_at(buffers, 0)
    mask, of = own.mask, own.of
    wide = own.flat.shape[1] > 0
    ended = 0
    begin = first * of.shape[1]
    n = begin
    for i in range(first, last):
        lane = own.lanes[i]
        row = max(own.rows[i], least)
        own.rewards[i] = 0.0
        if row == SKIP or (row != RESET and lane.ended != 0):
            ended += lane.ended
            continue
        sim: Sim = sim_at(addresses, i)
        clock = sim.world.clock[0]
        shed = sim.table.mask.size - 1
        if row == RESET:
            lane.decisions = 0
            lane.refused = 0
            lane.total = 0.0
            lane.ended = 0
            before = -1.0
            of[i, :] = -1
        else:
            if row == mask.shape[1] - 1:
                row = shed
            elif row < 0 or row >= shed or sim.table.mask[row] == 0:
                row = shed
                lane.refused += 1
            of[i, clock.current] = lane.decisions
            lane.decisions += 1
            before = clock.now
            engine.choose_row(sim, row, 1.0)
        going = engine.run_to_decision(sim)
        n = hear(sim, own, i, n)
        lane.now = clock.now
        lane.waited = clock.now - before if before >= 0.0 else 0.0
        lane.request = going
        if clock.current >= 0:
            lane.balancer = sim.world.slots[clock.current].balancer
        over = going < 0 or clock.next >= sim.world.requests.size
        if going < 0:  # nothing waits for a decision
            sim.table.mask[:shed] = 0
        rows, server, servers, context = own.parts
        write_parts(sim.table, mask[i], rows[i], server[i], servers[i], context[i])
        if wide:
            write_flat(rows[i], server[i], servers[i], context[i], own.flat[i])
        if over and clock.overflow == 0:
            lane.ended = 1
            n = play_out(sim, own, i, going, n)
        if clock.overflow != 0:
            return i, ended, n - begin
        lane.total += own.rewards[i]
        ended += lane.ended
    return -1, ended, n - begin


class BatchedSims:
    """N worlds that are stepped together.

    Parameters
    ----------
    count:
        Lanes.
    servers, rows, slots:
        Of the largest world that will be put there: servers, rows of its table, slots.
    wide:
        Observations as one wide row per candidate (`flat`); else in three parts (`parts`).
    threads:
        That step them.
    """

    def __init__(
        self, count: int, servers: int, rows: int, slots: int, *, wide: bool, threads: int = 1
    ) -> None:
        # A little longer than used: rows of a power of two bytes would begin in the same set of the
        # processor's cache, and a step of all lanes would push each out again.
        self._room = slots + 8
        self._buffers = new_buffers(count, servers, rows, self._room, wide)
        self._words = np.array([address_words(self._buffers)])
        self._addresses = np.zeros((count, 0), np.int64)
        self._memory = np.zeros((count, 0), np.uint8)
        self._slots = slots
        self._wide = wide
        self.sims: list[Sim | None] = [None] * count
        self.lanes = self._buffers.lanes
        self.lanes["ended"] = 1  # as in `put`
        self.mask = self._buffers.mask
        self.rewards = self._buffers.rewards
        self._rows = self._buffers.rows
        by_column, *others = self._buffers.parts
        parts = (by_column.transpose(0, 2, 1), *others, self.mask)
        self._parts = dict(zip(PARTS, parts, strict=True))
        threads = max(1, min(threads, count))
        self._blocks = [(count * t // threads, count * (t + 1) // threads) for t in range(threads)]
        self._known = [0] * threads  # scores, of each block in the last step
        self._credits: dict[int, dict[str, Array]] = {}  # views, by how many there are
        self._pool = ThreadPoolExecutor(threads, "lanes") if threads > 1 else None

    @classmethod
    def of(cls, supply: WorldSource, count: int, *, wide: bool, threads: int = 1) -> BatchedSims:
        """Lanes for the worlds of a supply."""
        return cls(count, supply.servers, supply.rows, supply.slots, wide=wide, threads=threads)

    def put(self, lane: int, sim: Sim) -> Sim:
        """Let a lane play a copy of `sim`, which is at its beginning; it must then be stepped with
        `RESET`. What it plays already, set back, is taken as it is. Returns what it plays.

        Raises ValueError if it is larger than the lanes were made for.
        """
        if sim.table.mask.size > self.mask.shape[1] or len(sim.world.slots) > self._slots:
            raise ValueError("a world larger than the lanes were made for")
        if sim.table.servers.shape[0] > self._parts["servers"].shape[1]:
            raise ValueError("a world with more servers than the lanes were made for")
        if sim is not self.sims[lane]:  # else its arrays are where they were
            sim = engine.branch(sim, self._memory_for(lane, sim))
            self._hold(lane, sim)
        sim.world.clock["learning"] = 1
        sim.table.settings.fill_servers = 1
        self.lanes[lane]["ended"] = 1  # nothing happens there but `RESET`
        self.mask[lane] = 0
        self._buffers.flat[lane] = 0.0
        for part in self._buffers.parts:
            part[lane] = -1 if part.dtype == np.int32 else 0
        return sim

    def _memory_for(self, lane: int, sim: Sim) -> Array | None:
        """Where its arrays are to lie; None: anywhere, for there is no room.

        All lanes lie in one piece, as large as the first world needs and a quarter: NumPy asks for
        huge pages for it, and a step of all lanes has fewer pages than a processor keeps at hand.
        """
        if self._memory.size == 0:
            lines = engine.bytes_of(sim) * 5 // 4 // engine.CACHE_LINE | 1  # odd: as of `_room`
            size = len(self.sims) * lines * engine.CACHE_LINE
            memory = np.zeros(size + engine.CACHE_LINE, np.uint8)
            begin = -memory.ctypes.data % engine.CACHE_LINE
            self._memory = memory[begin : begin + size].reshape(len(self.sims), -1)
        own: Array = self._memory[lane]
        return own if engine.bytes_of(sim) <= own.size else None

    def _hold(self, lane: int, sim: Sim) -> None:
        if type_of(sim) != type_of(example_sim()):
            raise ValueError("arrays of a type that was not compiled for")
        words = address_words(sim)
        if self._addresses.shape[1] != len(words):
            self._addresses = np.zeros((len(self.sims), len(words)), np.int64)
        self.sims[lane] = sim
        self._addresses[lane] = words

    def step(self, rows: Array, least: int = ANY) -> int:
        """Step every lane by its row, int64 (N,); `RESET` and `SKIP` stand for themselves.

        A row that is not admissible sheds, and is counted; one below `least` is taken for `least`.
        Returns how many lanes are at their end. Raises Crowded.
        """
        count = len(self._rows)
        try:
            given = len(rows)
        except TypeError:  # a number
            given = -1
        if given != count:
            raise ValueError(f"expected {count} rows, got {rows!r}")
        self._rows[:] = rows
        if self._pool is None:
            worst, over, self._known[0] = step_block(self._words, self._addresses, least, 0, count)
        else:
            step = partial(step_block, self._words, self._addresses, least)
            found = list(self._pool.map(step, *zip(*self._blocks, strict=True)))
            worst = max(crowded for crowded, _, _ in found)
            over = sum(ended for _, ended, _ in found)
            self._known = [known for _, _, known in found]
        if worst >= 0:
            raise TooManyOpenRequests(
                f"lane {worst}: over {self._slots} requests were open at a time"
            )
        return over

    def observation(self, lane: int) -> Any:
        """A copy of what a lane shows."""
        if self._wide:
            return self._buffers.flat[lane].copy()
        return {name: part[lane].copy() for name, part in self._parts.items()}

    def observations(self, copy: bool) -> Any:
        """What all lanes show; without `copy` the next step overwrites it."""
        if self._wide:
            return self._buffers.flat.copy() if copy else self._buffers.flat
        if copy:
            return {name: part.copy() for name, part in self._parts.items()}
        return self._parts.copy()

    def credits(self, copy: bool = True) -> dict[str, Array]:
        """`env`, `decision` and `reward` of every score that became known in the last step, an
        array each; without `copy` the next step may overwrite them."""
        own = self._buffers
        if self._pool is not None:
            begins = [first * self._room for first, _ in self._blocks]
            parts = [slice(at, at + n) for at, n in zip(begins, self._known, strict=True)]
            return {
                name: np.concatenate([array[part] for part in parts])
                for name, array in zip(CREDITS, (own.whose, own.which, own.worth), strict=True)
            }
        n = self._known[0]
        found = self._credits.get(n)
        if found is None:
            arrays = own.whose[:n], own.which[:n], own.worth[:n]
            found = self._credits[n] = dict(zip(CREDITS, arrays, strict=True))
        return {name: array.copy() for name, array in found.items()} if copy else found.copy()

    def close(self) -> None:
        """End its threads."""
        if self._pool is not None:
            self._pool.shutdown()
