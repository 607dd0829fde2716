"""Many simulations side by side, one decision of each at a time. Compiled.

A *lane* plays one world after another. What comes in: a row of the candidate table per lane. What
goes out: per lane the table of its next decision, the scores that became known on the way, and
whether its trace is at its end. The environments are a thin shell around this.

How lanes are stepped by one compiled call: a simulation is a tuple of arrays whose sizes differ
from world to world, so there is no array of simulations. `Lanes` keeps the *addresses* of each
lane's arrays in one integer table, and `at` builds the tuple from them, without touching a
reference count. What must hold: the lane's arrays are alive and at the addresses in the table
(`Lanes.sims` holds them, `Lanes.put` is the only place where they change).

Lanes share nothing, so blocks of them run in threads with the same bits on any number of threads.

Where an episode ends: at the first decision after which no request arrives any more. Its table is
the episode's final observation. It is never decided by whoever acts: it, and what else waits for a
decision at that moment (requests that came within the delay of their client's link), are shed, and
the world is played on until every score is known. So the sum of rewards is the sum of scores.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from edgewise.compiled import inner, lean
from edgewise.fleet.layout import Array
from edgewise.sim import engine
from edgewise.sim.layout import DONE, FREE, Sim
from edgewise.sim.observation import (
    CONTEXT,
    ROW,
    SERVER,
    WIDTH,
    write_flat,
    write_mask,
    write_parts,
)
from edgewise.sim.play import Crowded
from edgewise.sim.reference import by_reference
from edgewise.sim.requests import release
from edgewise.sim.supply import Supply

# They publish no types, or not for this.
cg: Any = cgutils
arrays: Any = arrayobj
tuples: Any = types.BaseTuple

BEGIN = -1
"""In place of a row: the lane's world has just been put there."""
IDLE = -2
"""In place of a row: leave the lane as it is."""

PARTS = ("rows", "server", "servers", "context", "action_mask")

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


def _at(typing: Any, like: Any, addresses: Any, lane: Any) -> Any:
    """The simulation of a lane, from the addresses of its arrays; of the type of `like`."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, table, row = args
        table = context.make_array(addresses)(context, builder, table)
        width = cg.unpack_tuple(builder, table.shape, 2)[1]
        base = builder.mul(context.cast(builder, row, lane, types.intp), width)
        position = 0

        def word() -> Any:
            nonlocal position
            place = builder.add(base, cg.intp_t(position))
            position += 1
            return builder.load(builder.gep(table.data, [place]))

        def build(kind: Any) -> Any:
            if isinstance(kind, tuples):
                return context.make_tuple(builder, kind, [build(each) for each in kind.types])
            array = context.make_array(kind)(context, builder)
            size = context.get_abi_sizeof(context.get_data_type(kind.dtype))
            data = builder.inttoptr(word(), array.data.type)
            shape = [word() for _ in range(kind.ndim)]
            strides = [cg.intp_t(size)]
            for length in reversed(shape[1:]):
                strides.insert(0, builder.mul(strides[0], length))
            arrays.populate_array(
                array,
                data=data,
                shape=cg.pack_array(builder, shape),
                strides=cg.pack_array(builder, strides),
                itemsize=cg.intp_t(size),
                meminfo=None,
            )
            return array._getvalue()

        return build(like)

    return like(like, addresses, lane), code


at: Any = intrinsic(_at)


def words_of(part: Any) -> list[int]:
    """What `at` reads of a simulation, or of a part of it: address and shape of every array."""
    if isinstance(part, tuple):
        return [word for each in part for word in words_of(each)]
    if not part.flags.c_contiguous:
        raise ValueError("an array of a simulation must be contiguous")
    return [part.ctypes.data, *part.shape]


@inner
def credit(sim: Sim, i: int, n: int, of: Array, which: Array, worth: Array) -> int:
    """Slot `i`'s score is known: note it as the `n`-th of this step; returns how many there are."""
    if of[i] < 0:
        return n
    which[n] = of[i]
    worth[n] = sim.world.slots[i].utility
    of[i] = -1
    return n + 1


@inner
def hear(sim: Sim, n: int, of: Array, which: Array, worth: Array) -> int:
    """Note the scores that the balancers have heard of since the last time."""
    clock = sim.world.clock[0]
    while clock.learn_head >= 0:
        j: int = clock.learn_head
        clock.learn_head = sim.world.slots[j].lesson
        if clock.learn_head < 0:
            clock.learn_tail = -1
        n = credit(sim, j, n, of, which, worth)
        release(sim.world, j)
    return n


@inner
def play_out(sim: Sim, going: int, n: int, of: Array, which: Array, worth: Array) -> int:
    """Shed what still waits for a decision and play until every score is known."""
    shed = sim.table.mask.size - 1
    while going >= 0:
        engine.take(sim, shed, 1.0)
        going = engine.go_on(sim)
        n = hear(sim, n, of, which, worth)
    # The world stops when the last request has ended, with word of it still under way.
    for i in range(sim.world.clock[0].used):
        if sim.world.slots[i].stage == DONE or sim.world.slots[i].stage == FREE:
            n = credit(sim, i, n, of, which, worth)
    return n


@lean
def step_block(
    like: Sim,
    addresses: Array,
    lanes: Array,
    of: Array,
    rows: Array,
    wide: bool,
    flat: Array,
    parts: tuple[Array, Array, Array, Array],
    mask: Array,
    rewards: Array,
    which: Array,
    worth: Array,
    counts: Array,
    first: int,
    last: int,
) -> int:
    """Step lanes `first` … `last` − 1 by their `rows`; returns the first lane that ran out of
    slots, −1 if none did."""
    for i in range(first, last):
        lane = lanes[i]
        if rows[i] == IDLE or (rows[i] != BEGIN and lane.ended != 0):
            counts[i] = 0
            rewards[i] = 0.0
            continue
        sim: Sim = by_reference(at(like, addresses, i))
        clock = sim.world.clock[0]
        shed = sim.table.mask.size - 1
        if rows[i] == BEGIN:
            lane.decisions = 0
            lane.refused = 0
            lane.total = 0.0
            lane.ended = 0
            before = -1.0
            of[i, :] = -1
        else:
            row = rows[i]
            if row == mask.shape[1] - 1:
                row = shed
            elif row < 0 or row >= shed or sim.table.mask[row] == 0:
                row = shed
                lane.refused += 1
            of[i, clock.current] = lane.decisions
            lane.decisions += 1
            before = clock.now
            engine.take(sim, row, 1.0)
        going = engine.go_on(sim)
        n = hear(sim, 0, of[i], which[i], worth[i])
        lane.now = clock.now
        lane.waited = clock.now - before if before >= 0.0 else 0.0
        lane.request = going
        if clock.current >= 0:
            lane.balancer = sim.world.slots[clock.current].balancer
        over = going < 0 or clock.next >= sim.world.requests.size
        write_mask(sim.table, going >= 0, mask[i])
        if wide:
            write_flat(sim.table, mask[i], flat[i])
        else:
            write_parts(sim.table, mask[i], parts[0][i], parts[1][i], parts[2][i], parts[3][i])
        if over and clock.overflow == 0:
            lane.ended = 1
            n = play_out(sim, going, n, of[i], which[i], worth[i])
        if clock.overflow != 0:
            return i
        reward = 0.0
        for c in range(n):
            reward += worth[i, c]
        lane.total += reward
        rewards[i] = reward
        counts[i] = n
    return -1


@lean
def gather(
    which: Array, worth: Array, counts: Array, lane: Array, decision: Array, reward: Array
) -> None:
    """Credits of all lanes, one after the other."""
    n = 0
    for i in range(counts.size):
        for c in range(counts[i]):
            lane[n] = i
            decision[n] = which[i, c]
            reward[n] = worth[i, c]
            n += 1


class Lanes:
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
        self.sims: list[Sim | None] = [None] * count
        self.lanes = np.zeros(count, LANE)
        self.mask = np.zeros((count, rows), np.int8)
        self.flat = np.zeros((count, rows if wide else 0, WIDTH), np.float32)
        size = 0 if wide else count
        self.parts = (
            np.zeros((size, rows, len(ROW)), np.float32),
            np.full((size, rows), -1, np.int32),
            np.zeros((size, servers, len(SERVER)), np.float32),
            np.zeros((size, len(CONTEXT)), np.float32),
        )
        self.rewards = np.zeros(count)
        self._wide = wide
        self._addresses = np.zeros((count, 0), np.int64)
        self._slots = slots
        # A little longer than used: rows of a power of two bytes would begin in the same set of the
        # processor's cache, and a step of all lanes would push each out again.
        room = slots + 8
        self._of = np.full((count, room), -1, np.int64)
        self._which = np.zeros((count, room), np.int64)
        self._worth = np.zeros((count, room))
        self._counts = np.zeros(count, np.int64)
        threads = max(1, min(threads, count))
        self._blocks = [(count * t // threads, count * (t + 1) // threads) for t in range(threads)]
        self._pool = ThreadPoolExecutor(threads, "lanes") if threads > 1 else None

    @classmethod
    def of(cls, supply: Supply, count: int, *, wide: bool, threads: int = 1) -> Lanes:
        """Lanes for the worlds of a supply."""
        return cls(count, supply.servers, supply.rows, supply.slots, wide=wide, threads=threads)

    def put(self, lane: int, sim: Sim) -> None:
        """Let a lane play `sim`, which is at its beginning; it must then be stepped with `BEGIN`.

        Raises ValueError if it is larger than the lanes were made for.
        """
        if sim.table.mask.size > self.mask.shape[1] or len(sim.world.slots) > self._slots:
            raise ValueError("a world larger than the lanes were made for")
        if not self._wide and sim.table.servers.shape[0] > self.parts[2].shape[1]:
            raise ValueError("a world with more servers than the lanes were made for")
        sim.world.clock["learning"] = 1
        sim.table.wanted[0] = 1
        words = words_of(sim)
        if self._addresses.shape[1] != len(words):
            self._addresses = np.zeros((len(self.sims), len(words)), np.int64)
        self.sims[lane] = sim
        self._addresses[lane] = words
        self.lanes[lane]["ended"] = 1  # nothing happens there but `BEGIN`
        self.mask[lane] = 0
        if self._wide:
            self.flat[lane] = 0.0
        else:
            for part in self.parts:
                part[lane] = -1 if part.dtype == np.int32 else 0

    def step(self, rows: Array) -> None:
        """Step every lane by its row, int64 (N,); `BEGIN` and `IDLE` stand for themselves.

        A row that is not admissible sheds, and is counted. Raises Crowded.
        """
        if rows.shape != self.rewards.shape:
            raise ValueError(f"expected {len(self.rewards)} rows, got {rows.shape}")
        like: Any = self.sims[0]

        def run(block: tuple[int, int]) -> int:
            return step_block(
                like, self._addresses, self.lanes, self._of, rows, self._wide, self.flat,
                self.parts, self.mask, self.rewards, self._which, self._worth, self._counts, *block
            )  # fmt: skip

        found = self._pool.map(run, self._blocks) if self._pool else map(run, self._blocks)
        crowded = max(found)
        if crowded >= 0:
            raise Crowded(f"lane {crowded}: over {self._slots} requests were open at a time")

    def observation(self, lane: int) -> Any:
        """A copy of what a lane shows."""
        if self._wide:
            return self.flat[lane].copy()
        parts = [part[lane].copy() for part in (*self.parts, self.mask)]
        return dict(zip(PARTS, parts, strict=True))

    def observations(self, copy: bool) -> Any:
        """What all lanes show; without `copy` the next step overwrites it."""
        if self._wide:
            return self.flat.copy() if copy else self.flat
        parts = [part.copy() if copy else part for part in (*self.parts, self.mask)]
        return dict(zip(PARTS, parts, strict=True))

    def credits(self) -> tuple[Array, Array, Array]:
        """(lane, decision, reward) of every score that became known in the last step."""
        n = int(self._counts.sum())
        lane, decision, reward = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n)
        gather(self._which, self._worth, self._counts, lane, decision, reward)
        return lane, decision, reward

    def close(self) -> None:
        """End its threads."""
        if self._pool is not None:
            self._pool.shutdown()
