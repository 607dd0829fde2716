"""Many simulations side by side, each stepped by one decision at a time. Compiled.

A *lane* plays one world after another. A step takes one row of the candidate table per lane. It
yields, per lane, the table of the next decision, the scores that became known on the way, and
whether the trace has ended. The environments are a thin shell around this module.

Theory of operation
-------------------
A simulation is a tuple of arrays whose sizes differ from world to world, so there is no array of
simulations that compiled code could index. `BatchedSims` keeps the *addresses* of each lane's
arrays in one integer table, laid out as numba lays out the tuple, and `sim_at` reads a reference
to the tuple from there (`compile.addresses`). Two things must hold: the arrays stay alive at those
addresses (`BatchedSims.sims` holds them, and only `BatchedSims.put` replaces them), and their types
are the ones compiled for, which `put` checks. The buffers that the lanes share with Python
(`Buffers`) come in the same way, because stepping one lane takes less time than passing a dozen
arrays from Python.

Lanes share nothing, so blocks of lanes run in threads, and the results are the same bits on any
number of threads.

An episode ends at the first decision after which no more requests arrive. The table of that
decision is the episode's final observation, and nobody decides it: that request is shed, together
with any other that waits for a decision at that time (requests that arrived within the delay of
their client's link). Then the world is played on until every score is known, so the sum of rewards
is the sum of scores.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from edgewise.compile import address_words, jit_no_refcount, tuple_reader, type_of
from edgewise.fleet.arrays import Array, records
from edgewise.sim import engine
from edgewise.sim.env.observation import CONTEXT, ROW, SERVER, WIDTH, write_parts, write_table
from edgewise.sim.layout import DONE, FREE, READY, SERVED, Sim
from edgewise.sim.play import TooManyOpenRequests
from edgewise.sim.slots import drop_reference
from edgewise.sim.source import WorldSource

RESET = -1
"""Pseudo-action: start the world just put into this lane."""
SKIP = -2
"""Pseudo-action: leave the lane as it is."""
NO_LEAST = -(2**63)
"""For `BatchedSims.step`: replace no row."""

PARTS = ("rows", "server", "servers", "context", "action_mask")

LANE = np.dtype(
    [
        ("decisions", "i8"),  # made in this episode
        ("refused", "i8"),  # inadmissible rows that were chosen, and shed instead
        ("now", "f8"),  # time of the waiting decision, s
        ("waited", "f8"),  # s since the previous decision; 0 at the first
        ("request", "i8"),  # number in the trace of the waiting request; −1 none
        ("balancer", "i8"),  # that decides it
        ("credited", "i8"),  # scores that became known in the last step
        ("ended", "i8"),  # 1: the table is the episode's final observation
    ]
)

CREDIT = np.dtype(
    [
        ("decision", "i8"),  # its number in the episode, from 0
        ("reward", "f8"),  # its score
        ("latency", "f8"),  # s from sending to the answer at the client; inf unless served
        ("accuracy", "f8"),  # of the service that answered, for the form it got; 0 unless served
        ("server", "i4"),  # that answered; −1 unless served
        ("status", "i4"),  # how the request ended: index into `layout.STATUSES`
    ]
)
"""A score that became known. All zero where there is none: status 0 is *pending*."""


class Buffers(NamedTuple):
    """The arrays that N lanes share with Python: R rows, S servers, C open requests per lane."""

    rows: Array  # int64 (N,): the actions of this step
    lanes: Array  # LANE (N,)
    decision_in: Array  # int64 (N, C): number of the decision in each slot, −1 none or credited
    mask: Array  # int8 (N, R)
    table: Array  # float32 (N, R, WIDTH), or (N, 0, WIDTH) where observations come in parts
    # The first four of `PARTS`; rows (N, columns, R), as the candidate table stores them.
    parts: tuple[Array, Array, Array, Array]
    rewards: Array  # float64 (N,)
    credits: Array  # CREDIT (N, C): a lane's first `credited` are those of the last step


def new_buffers(count: int, servers: int, rows: int, room: int, wide: bool) -> Buffers:
    """Buffers for lanes that have played nothing; `wide`: with room for `table`."""
    return Buffers(
        rows=np.zeros(count, np.int64),
        lanes=records(count, LANE),
        decision_in=np.full((count, room), -1, np.int64),
        mask=np.zeros((count, rows), np.int8),
        table=np.zeros((count, rows if wide else 0, WIDTH), np.float32),
        parts=(
            np.zeros((count, len(ROW), rows), np.float32),
            np.full((count, rows), -1, np.int32),
            np.zeros((count, servers, len(SERVER)), np.float32),
            np.zeros((count, len(CONTEXT)), np.float32),
        ),
        rewards=np.zeros(count),
        credits=records((count, room), CREDIT),
    )


@cache
def example_sim() -> Sim:
    """A simulation. All have the same type, because they differ in sizes only."""
    return WorldSource(family="light", duration=1e-3).world(0)


def example_buffers() -> Buffers:
    """Buffers. All have the same type."""
    return new_buffers(1, 1, 1, 1, wide=True)


sim_at = tuple_reader(example_sim)
buffers_at = tuple_reader(example_buffers)


@jit_no_refcount(inline=True, internal=True)
def credit(sim: Sim, buffers: Buffers, i: int, slot_number: int) -> None:
    """The score of the request in slot `slot_number` of lane `i` is known: credit its decision."""
    decision = buffers.decision_in[i, slot_number]
    if decision < 0:
        return
    buffers.decision_in[i, slot_number] = -1
    lane = buffers.lanes[i]
    slot = sim.world.slots[slot_number]
    entry = buffers.credits[i, lane.credited]
    lane.credited += 1
    entry.decision = decision
    entry.reward = slot.utility
    entry.status = slot.status
    if slot.status == SERVED:
        service = sim.world.services[slot.service]
        entry.accuracy = service.ready_accuracy if slot.form == READY else service.accuracy
        entry.server = slot.server
        entry.latency = slot.latency
    else:
        entry.latency = np.inf
        entry.accuracy = 0.0
        entry.server = -1
    buffers.rewards[i] += slot.utility


@jit_no_refcount(inline=True, internal=True)
def clear_credits(buffers: Buffers, i: int) -> None:
    """Forget what lane `i` was credited with in the previous step."""
    for c in range(buffers.lanes[i].credited):
        entry = buffers.credits[i, c]
        entry.decision = 0
        entry.reward = 0.0
        entry.latency = 0.0
        entry.accuracy = 0.0
        entry.server = 0
        entry.status = 0
    buffers.lanes[i].credited = 0
    buffers.rewards[i] = 0.0


@jit_no_refcount(inline=True, internal=True)
def collect_feedback(sim: Sim, buffers: Buffers, i: int) -> None:
    """Credit the scores that the balancers of lane `i` have learned since the last call."""
    clock = sim.world.clock[0]
    for c in range(clock.feedback_count):
        slot_number: int = sim.world.slots[c].feedback_slot
        credit(sim, buffers, i, slot_number)
        drop_reference(sim.world, slot_number)
    clock.feedback_count = 0


@jit_no_refcount(internal=True)
def play_out(sim: Sim, buffers: Buffers, i: int, waiting: int) -> None:
    """Shed what still waits for a decision, then play until every score is known."""
    shed = sim.table.mask.size - 1
    while waiting >= 0:
        engine.choose_row(sim, shed, 1.0)
        waiting = engine.run_to_decision(sim)
        collect_feedback(sim, buffers, i)
    # The world stops when the last request ends, with news of some outcomes still on the way.
    for j in range(sim.world.clock[0].used):
        if sim.world.slots[j].stage == DONE or sim.world.slots[j].stage == FREE:
            credit(sim, buffers, i, j)


@jit_no_refcount(inline=True, internal=True)
def observe(sim: Sim, buffers: Buffers, i: int) -> None:
    """Write the observation and the mask of lane `i`."""
    rows, server, servers, context = buffers.parts
    write_parts(sim.table, buffers.mask[i], rows[i], server[i], servers[i], context[i])
    if buffers.table.shape[1] > 0:
        write_table(rows[i], server[i], servers[i], context[i], buffers.table[i])


@jit_no_refcount
def step_block(
    buffer_words: Array, addresses: Array, least: int, first: int, last: int
) -> tuple[int, int, int]:
    """Step lanes `first` … `last` − 1 by their rows; rows below `least` are replaced by it.

    `buffer_words` (1, ·) and `addresses` (N, ·) are the words of `Buffers` and of the simulations.
    Returns the first lane that ran out of slots (−1 if none did), how many lanes are at their end,
    and the largest number of scores that became known in one lane.
    """
    buffers: Buffers = buffers_at(buffer_words, 0)
    mask = buffers.mask
    ended = 0
    most = 0
    for i in range(first, last):
        lane = buffers.lanes[i]
        row = max(buffers.rows[i], least)
        if row == SKIP:
            ended += lane.ended
            most = max(most, lane.credited)
            continue
        clear_credits(buffers, i)
        if row != RESET and lane.ended != 0:
            ended += lane.ended
            continue
        sim: Sim = sim_at(addresses, i)
        clock = sim.world.clock[0]
        shed = sim.table.mask.size - 1
        before = -1.0
        if row == RESET:
            lane.decisions = 0
            lane.refused = 0
            lane.ended = 0
            buffers.decision_in[i, :] = -1
        else:
            if row == mask.shape[1] - 1:
                row = shed
            elif row < 0 or row >= shed or sim.table.mask[row] == 0:
                row = shed
                lane.refused += 1
            buffers.decision_in[i, clock.current] = lane.decisions
            lane.decisions += 1
            before = clock.now
            engine.choose_row(sim, row, 1.0)
        waiting = engine.run_to_decision(sim)
        collect_feedback(sim, buffers, i)
        lane.now = clock.now
        lane.waited = clock.now - before if before >= 0.0 else 0.0
        lane.request = waiting
        if clock.current >= 0:
            lane.balancer = sim.world.slots[clock.current].balancer
        if waiting < 0:  # nothing waits for a decision
            sim.table.mask[:shed] = 0
        observe(sim, buffers, i)
        if (waiting < 0 or clock.next >= sim.world.requests.size) and clock.overflow == 0:
            lane.ended = 1
            play_out(sim, buffers, i, waiting)
        if clock.overflow != 0:
            return i, ended, most
        ended += lane.ended
        most = max(most, lane.credited)
    return -1, ended, most


class BatchedSims:
    """N worlds that are stepped together.

    Copies and pickles are independent of the original.

    Parameters
    ----------
    count:
        N, the number of lanes.
    servers, rows, slots:
        Sizes of the largest world that will be put into a lane: servers, rows of its candidate
        table, requests open at a time.
    observation:
        ``"table"``, ``"flat"`` or ``"parts"``: see `environment.observation_space`.
    threads:
        How many threads step the lanes.
    """

    def __init__(
        self,
        count: int,
        servers: int,
        rows: int,
        slots: int,
        *,
        observation: str = "table",
        threads: int = 1,
    ) -> None:
        self._sizes = {"count": count, "servers": servers, "rows": rows, "slots": slots}
        self._observation = observation
        # Longer than needed: with rows of a power of two bytes, all lanes would begin in the same
        # set of the processor's cache and evict each other in every step.
        room = slots + 8
        self._buffers = new_buffers(count, servers, rows, room, wide=observation != "parts")
        self._words = np.array([address_words(self._buffers)])
        self._addresses = np.zeros((count, 0), np.int64)
        self._memory = np.zeros((count, 0), np.uint8)
        self.sims: list[Sim | None] = [None] * count
        self._copiers: list[engine.BranchCopier | None] = [None] * count
        self.lanes = self._buffers.lanes.view(np.ndarray)
        self.lanes["ended"] = 1  # as in `_blank`
        self.mask = self._buffers.mask
        self.rewards = self._buffers.rewards
        by_column, *others = self._buffers.parts
        parts = (by_column.transpose(0, 2, 1), *others, self.mask)
        self._parts = dict(zip(PARTS, parts, strict=True))
        table = self._buffers.table
        self._table = table.reshape(count, -1) if observation == "flat" else table
        threads = max(1, min(threads, count))
        self._blocks = [(count * t // threads, count * (t + 1) // threads) for t in range(threads)]
        self._most = 0  # scores that became known in one lane in the last step
        self._views: dict[int, dict[str, Array]] = {}  # of credits, by how many are shown
        self._pool = ThreadPoolExecutor(threads, "lanes") if threads > 1 else None

    @classmethod
    def of(
        cls, source: WorldSource, count: int, *, observation: str = "table", threads: int = 1
    ) -> BatchedSims:
        """Lanes that are large enough for every world of `source`."""
        sizes = source.servers, source.rows, source.slots
        return cls(count, *sizes, observation=observation, threads=threads)

    def put(self, lane: int, sim: Sim, *, replayable: bool = False) -> None:
        """Let a lane play a copy of `sim`, which is at its beginning; then step it with `RESET`.

        `replayable` keeps `sim` for `restart`. Raises ValueError if the world is larger than the
        lanes were made for.
        """
        if (
            sim.table.mask.size > self.mask.shape[1]
            or len(sim.world.slots) > self._sizes["slots"]
            or sim.table.servers.shape[0] > self._parts["servers"].shape[1]
        ):
            raise ValueError("a world larger than the lanes were made for")
        own = self._place(lane, sim)
        self._copiers[lane] = engine.BranchCopier(own, sim) if replayable else None
        self._blank(lane)

    def restart(self, lane: int) -> None:
        """Set a lane back to the beginning of its replayable world; then step it with `RESET`."""
        copier = self._copiers[lane]
        if copier is None:
            raise ValueError(f"lane {lane} has no replayable world")
        copier()
        self._blank(lane)

    def _blank(self, lane: int) -> None:
        """Make a lane show nothing, and accept nothing but `RESET`."""
        sim = self.sims[lane]
        assert sim is not None
        sim.world.clock["learning"] = 1
        sim.table.settings.fill_servers = 1
        self.lanes[lane]["ended"] = 1
        self.mask[lane] = 0
        self._buffers.table[lane] = 0.0
        for part in self._buffers.parts:
            part[lane] = -1 if part.dtype == np.int32 else 0

    def _place(self, lane: int, sim: Sim) -> Sim:
        """Copy `sim` into the lane's memory and enter its addresses; returns the copy."""
        own = engine.branch(sim, self._memory_for(lane, sim))
        if type_of(own) != type_of(example_sim()):
            raise ValueError("arrays of a type that was not compiled for")
        words = address_words(own)
        if self._addresses.shape[1] != len(words):
            self._addresses = np.zeros((len(self.sims), len(words)), np.int64)
        self.sims[lane] = own
        self._addresses[lane] = words
        return own

    def _memory_for(self, lane: int, sim: Sim) -> Array | None:
        """The memory for a lane's arrays; None if they do not fit into the lane's share.

        All lanes lie in one piece, with a quarter more than the first world needs: NumPy asks for
        huge pages for it, so that a step of all lanes touches fewer pages than a processor caches.
        """
        if self._memory.size == 0:
            lines = engine.bytes_of(sim) * 5 // 4 // engine.CACHE_LINE | 1  # odd, as for `room`
            size = len(self.sims) * lines * engine.CACHE_LINE
            memory = np.zeros(size + engine.CACHE_LINE, np.uint8)
            begin = -memory.ctypes.data % engine.CACHE_LINE
            self._memory = memory[begin : begin + size].reshape(len(self.sims), -1)
        own: Array = self._memory[lane]
        return own if engine.bytes_of(sim) <= own.size else None

    def step(self, rows: Array, least: int = NO_LEAST) -> int:
        """Step every lane by its row, int64 (N,); `RESET` and `SKIP` keep their meaning.

        An inadmissible row sheds, and is counted; a row below `least` is replaced by it.
        Returns how many lanes are at their end. Raises TooManyOpenRequests.
        """
        count = len(self.sims)
        try:
            given = len(rows)
        except TypeError:  # a number
            given = -1
        if given != count:
            raise ValueError(f"expected {count} rows, got {rows!r}")
        self._buffers.rows[:] = rows
        if self._pool is None:
            crowded, over, self._most = step_block(self._words, self._addresses, least, 0, count)
        else:
            step = partial(step_block, self._words, self._addresses, least)
            blocks = list(self._pool.map(step, *zip(*self._blocks, strict=True)))
            crowded = max(block[0] for block in blocks)
            over = sum(block[1] for block in blocks)
            self._most = max(block[2] for block in blocks)
        if crowded >= 0:
            raise TooManyOpenRequests(
                f"lane {crowded}: over {self._sizes['slots']} requests were open at a time"
            )
        return over

    def observation(self, lane: int) -> Any:
        """A copy of one lane's observation."""
        if self._observation != "parts":
            return self._table[lane].copy()
        return {name: part[lane].copy() for name, part in self._parts.items()}

    def observations(self, copy: bool) -> Any:
        """The observations of all lanes; without `copy` the next step overwrites them."""
        if self._observation != "parts":
            return self._table.copy() if copy else self._table
        if copy:
            return {name: part.copy() for name, part in self._parts.items()}
        return self._parts.copy()

    def credits(self, copy: bool) -> dict[str, Array]:
        """The scores that became known in the last step: an array (N, K) for each field of
        `CREDIT`, where K is the largest number of them in one lane. Lanes with fewer are padded
        with zeros (status 0). Without `copy` the next step overwrites them."""
        views = self._views.get(self._most)
        if views is None:
            names = CREDIT.names or ()
            views = {name: self._buffers.credits[name][:, : self._most] for name in names}
            self._views[self._most] = views
        return {name: view.copy() for name, view in views.items()} if copy else views.copy()

    def credits_of(self, lane: int) -> list[tuple[Any, ...]]:
        """The scores that became known in one lane in the last step, as tuples of `CREDIT`."""
        entries: list[tuple[Any, ...]] = self._buffers.credits[
            lane, : self.lanes[lane]["credited"]
        ].tolist()
        return entries

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    # -- copies: addresses and threads belong to one object, so a copy is built anew ---------------

    def __getstate__(self) -> dict[str, Any]:
        starts = [None if copier is None else copier.source for copier in self._copiers]
        options = {"observation": self._observation, "threads": len(self._blocks)}
        return {
            "arguments": {**self._sizes, **options},
            "buffers": self._buffers,
            "sims": self.sims,
            "starts": starts,
            "most": self._most,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).__init__(self, **state["arguments"])
        for array, saved in zip(_flat(self._buffers), _flat(state["buffers"]), strict=True):
            array[...] = saved
        self._most = state["most"]
        for lane, (sim, start) in enumerate(zip(state["sims"], state["starts"], strict=True)):
            own = None if sim is None else self._place(lane, sim)
            if own is not None and start is not None:
                self._copiers[lane] = engine.BranchCopier(own, start)


def _flat(part: Any) -> list[Array]:
    """The arrays of a tuple, and of the tuples in it."""
    return [array for each in part for array in _flat(each)] if isinstance(part, tuple) else [part]
