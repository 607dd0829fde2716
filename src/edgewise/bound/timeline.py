"""How links and servers change over an episode, read from a simulation at its beginning.

Where something changes within the span asked for, the most favourable value is returned.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from edgewise.compile import jit, jit_no_refcount
from edgewise.fleet.arrays import Array
from edgewise.sim import layout
from edgewise.sim.impairments import impaired_at_best
from edgewise.sim.layout import CONSTANT, CURVE, UNLIMITED, World
from edgewise.sim.links import capacity, crossing_end


class LinkStates(NamedTuple):
    """The successive states of L links: an event of the scenario begins a new one."""

    states: Array  # sim.layout.LINK, one link after the other
    since: Array  # float64: s at which each state begins
    first: Array  # int64 (L + 1,): where each link's states begin


def link_states(world: World, script: Array) -> LinkStates:
    """The states of every link of `world`, whose events are in `script`."""
    states: list[list[tuple[float, np.void]]] = [[(-np.inf, link.copy())] for link in world.links]
    for line in script:
        if line["kind"] != layout.S_LINK_CHANGE:
            continue
        now = states[int(line["index"])][-1][1].copy()
        for name, *_ in layout.LINK_SETTINGS:
            now[name] = line[name]
        states[int(line["index"])].append((float(line["time"]), now))
    flat = [entry for one in states for entry in one]
    return LinkStates(
        states=np.array([state for _, state in flat], layout.LINK).view(np.recarray),
        since=np.array([since for since, _ in flat]),
        first=np.cumsum([0, *(len(one) for one in states)]).astype(np.int64),
    )


def up_seconds(world: World, script: Array, edges: Array) -> Array:
    """Seconds in each bin during which each server is up: (S, N)."""
    up = np.repeat(np.diff(edges)[None], len(world.servers), axis=0)
    for s in range(len(world.servers)):
        down = math.inf
        lines = [
            line for line in script if line["index"] == s and line["kind"] != layout.S_LINK_CHANGE
        ]
        for line in lines:
            if line["kind"] == layout.S_SERVER_DOWN:
                down = min(down, float(line["time"]))
            else:
                up[s] -= np.diff(np.clip(edges, down, max(down, float(line["time"]))))
                down = math.inf
        if down < math.inf:
            up[s] -= np.diff(np.clip(edges, down, math.inf))
    np.maximum(up, 0.0, out=up)
    return up


def ingress_stops(world: World, script: Array) -> Array:
    """When the ingress of each request (R,) first stops after it was sent; inf = never.

    A request without an answer by then gets none.
    """
    out = np.full(len(world.requests), math.inf)
    for line in script[::-1]:
        if line["kind"] == layout.S_SERVER_DOWN:
            mine = world.requests["ingress"] == line["index"]
            out[mine & (world.requests["time"] <= line["time"])] = line["time"]
    return out


def least_slowness(world: World, edges: Array) -> Array:
    """The least slowness in force anywhere in each (closed) bin: (S, N)."""
    out = np.ones((len(world.servers), len(edges) - 1))
    for s, server in enumerate(world.servers):
        count, at = int(server["slow_count"]), int(server["slow_at"])
        if not count:
            continue
        steps = world.numbers[at : at + 2 * count].reshape(-1, 2)
        # The engine starts with the first step whatever its time.
        first = np.maximum(np.searchsorted(steps[:, 0], edges[:-1], side="left") - 1, 0)
        last = np.maximum(np.searchsorted(steps[:, 0], edges[1:], side="right") - 1, 0)
        for j in range(out.shape[1]):
            out[s, j] = steps[first[j] : last[j] + 1, 1].min()
    return out


@jit
def carried_by_bin(links: LinkStates, numbers: Array, link: int, edges: Array) -> Array:
    """Bytes that link `link` can carry in each bin; inf where it is ever unlimited."""
    out = np.empty(edges.size - 1)
    for j in range(out.size):
        out[j] = carried(links, numbers, link, edges[j], edges[j + 1])
    return out


@jit_no_refcount(internal=True)
def carried(links: LinkStates, numbers: Array, link: int, since: float, until: float) -> float:
    """Bytes that link `link` can carry between two times; inf where it is ever unlimited."""
    total = 0.0
    for n in range(links.first[link], links.first[link + 1]):
        begin = max(since, links.since[n])
        end = until
        if n + 1 < links.first[link + 1]:
            end = min(end, links.since[n + 1])
        if end > begin:
            state = links.states[n]
            if state.mode == UNLIMITED:
                return math.inf
            total += capacity(state, numbers, begin, end)
    return total


@jit_no_refcount(internal=True)
def crossing_time(links: LinkStates, numbers: Array, link: int, now: float, size: float) -> float:
    """When `size` bytes that have a link to themselves from `now` on are across; inf = never."""
    time = now
    for n in range(links.first[link], links.first[link + 1]):
        end = math.inf
        if n + 1 < links.first[link + 1]:
            end = links.since[n + 1]
        if end <= time:
            continue
        state = links.states[n]
        done = crossing_end(state, numbers, time, size)
        if done <= end:
            return done
        if state.mode != UNLIMITED:
            size = max(0.0, size - capacity(state, numbers, time, end))
        time = end
    return math.inf


@jit_no_refcount(internal=True)
def least_lag(links: LinkStates, seed: int, r: int, link: int, size: float) -> float:
    """The least lag (delay, jitter, stall) of request `r`'s `size` bytes in any state."""
    best = math.inf
    for n in range(links.first[link], links.first[link + 1]):
        state = links.states[n]
        lag = impaired_at_best(state.delay, state.impairments, seed, r, link, size, 0.0)
        best = min(best, lag)
    return best


@jit_no_refcount(internal=True)
def least_delay(links: LinkStates, link: int) -> float:
    """The least delay of a link in any state."""
    best = math.inf
    for n in range(links.first[link], links.first[link + 1]):
        best = min(best, links.states[n].delay)
    return best


def peak_rate(world: World, links: LinkStates, link: int) -> float:
    """The highest rate in bytes/s that link `link` ever has."""
    peak = 0.0
    for state in links.states[links.first[link] : links.first[link + 1]]:
        if state["mode"] == CONSTANT:
            peak = max(peak, float(state["rate"]))
        elif state["mode"] == CURVE:
            at, n = int(state["curve_at"]), int(state["curve_count"])
            lengths = np.diff(world.numbers[at : at + n])
            rises = np.diff(world.numbers[at + n : at + 2 * n])
            steep = np.where(lengths > 0.0, rises / np.maximum(lengths, 1e-300), np.inf)
            peak = max(peak, float(steep.max(initial=0.0)))
        else:
            return math.inf
    return peak
