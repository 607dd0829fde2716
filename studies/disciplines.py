"""The value of each discipline: `priced_greedy` with and without it, in the same worlds.

Each line of the table changes one thing: the order of the queues, what a transfer may carry, whose
CPU re-encodes, whether services run batches, how links are shared. The difference of expected
utility is taken in each world, then averaged over families within each seed, and its interval is
over seeds.

*Same weights*: both sides use the rule's tuned parameters. These were tuned with earliest deadline
first, priced forms on shared CPUs and no batches, which is a disadvantage for every other
condition. *Re-tuned*: both sides continue from the tuned parameters with the same short search
under their own conditions. The control is that search under the conditions of the tuning, and shows
what further tuning alone gains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from msgspec import Struct

from edgewise.benchmark import suite, tune
from edgewise.benchmark.report import table
from edgewise.benchmark.statistics import Floats, Interval, over_families
from edgewise.compile import jit
from edgewise.fleet.arrays import Array
from edgewise.fleet.table import CandidateTable
from edgewise.learn.search import Budget
from edgewise.policies import POLICIES
from edgewise.policies.base import PolicySpec
from edgewise.policies.priced import priced_greedy
from edgewise.scenario import NetworkSpec, Scenario, ServerSpec
from edgewise.sim.build import SimOptions

POLICY = "priced_greedy"
FAMILIES = ("light", "medium", "heavy", "overload", "hot_spot", "bursty", "volatile")
"""The four loads, and the families that strain links and queues."""
BATCH_MAX = 8

Change = Callable[[Scenario], Scenario]


class Condition(Struct, frozen=True, kw_only=True):
    """Conditions under which the rule decides."""

    name: str
    change: Change | None = None
    options: SimOptions = SimOptions()
    forced: bool = False
    """Whether every transfer is model-ready."""


class Contrast(Struct, frozen=True, kw_only=True):
    """A line of the table: the gain of condition `with_` over `without`."""

    name: str
    with_: str
    without: str


# -- the conditions ------------------------------------------------------------------------------


def _prepare(**changes: object) -> Change:
    def change(world: Scenario) -> Scenario:
        prepare = msgspec.structs.replace(world.prepare, **changes)
        return msgspec.structs.replace(world, prepare=prepare)

    return change


def _fifo(world: Scenario) -> Scenario:
    return msgspec.structs.replace(world, discipline="fifo")


def _curve(fixed: float) -> Change:
    """Let services run batches: b requests take (fixed + (1 − fixed) · b) times as long as one."""

    def batched(server: ServerSpec) -> ServerSpec:
        services = tuple(
            msgspec.structs.replace(
                service,
                latency=tuple(
                    (service.latency or (0.0,))[0] * (fixed + (1.0 - fixed) * b)
                    for b in range(1, BATCH_MAX + 1)
                ),
            )
            for service in server.services
        )
        return msgspec.structs.replace(server, services=services)

    def change(world: Scenario) -> Scenario:
        servers = {name: batched(server) for name, server in world.servers.items()}
        return msgspec.structs.replace(world, servers=servers)

    return change


def thin(world: Scenario) -> Scenario:
    """The world with links between servers at a fifth of their bandwidth, events included."""
    network: NetworkSpec = world.network
    links = {
        name: msgspec.structs.replace(link, rate_mbps=(link.rate_mbps or 0.0) / 5.0)
        for name, link in network.links.items()
    }
    events = tuple(
        msgspec.structs.replace(
            event, set=msgspec.structs.replace(event.set, rate_mbps=event.set.rate_mbps / 5.0)
        )
        if isinstance(event.set.rate_mbps, float)
        else event
        for event in network.events
    )
    return msgspec.structs.replace(
        world, network=msgspec.structs.replace(network, links=links, events=events)
    )


def _after(first: Change | None, then: Change) -> Change:
    return then if first is None else lambda world: then(first(world))


CONDITIONS: dict[str, Condition] = {
    each.name: each
    for each in (
        Condition(name="as tuned"),
        Condition(name="original only", change=_prepare(enabled=False)),
        Condition(name="own core", change=_prepare(on="own")),
        Condition(name="forced", forced=True),
        Condition(name="fifo", change=_fifo),
        Condition(name="gpu batches", change=_curve(0.6)),
        Condition(name="cpu batches", change=_curve(0.15)),
        Condition(name="fifo links", options=SimOptions(fifo_links=True)),
    )
}

CONTRASTS = (
    Contrast(
        name="re-encoding as a priced choice, CPU shared with the workers",
        with_="as tuned",
        without="original only",
    ),
    Contrast(
        name="re-encoding as a priced choice, on a core of its own",
        with_="own core",
        without="original only",
    ),
    Contrast(
        name="re-encoding *forced* on every transfer, CPU shared",
        with_="forced",
        without="original only",
    ),
    Contrast(
        name="earliest deadline first, over first come first served",
        with_="as tuned",
        without="fifo",
    ),
    Contrast(
        name="batches up to 8 on a GPU-like curve (0.6 + 0.4 b)",
        with_="gpu batches",
        without="as tuned",
    ),
    Contrast(
        name="batches up to 8 on a CPU-like curve (0.15 + 0.85 b)",
        with_="cpu batches",
        without="as tuned",
    ),
    Contrast(
        name="links shared equally, over first in first out",
        with_="as tuned",
        without="fifo links",
    ),
)


_priced_greedy = priced_greedy.kernel


@jit
def _priced_forced(table: CandidateTable, params: Array, memory: Array, rng: Array) -> float:
    """`priced_greedy` whose transfers are all model-ready where that form may be chosen."""
    probability = _priced_greedy(table, params, memory, rng)
    for r in range(0, table.mask.size - 1, 2):
        if table.rows.local[r] == 0.0 and table.mask[r + 1] == 1:
            table.scores[r] = -np.inf
    return probability


def policy_of(condition: Condition, params: Sequence[float] | None = None) -> PolicySpec:
    """The rule as a condition has it, with `params` in place of the tuned ones."""
    policy = POLICIES[POLICY]
    return msgspec.structs.replace(
        policy,
        kernel=_priced_forced if condition.forced else policy.kernel,
        params=policy.params if params is None else tuple(params),
    )


# -- measuring -----------------------------------------------------------------------------------


class ContrastResult(Struct, frozen=True, kw_only=True):
    """A measured line: differences of utility × 10⁻³."""

    contrast: Contrast
    same: Interval
    same_thin: Interval
    by_family: tuple[Interval, ...]
    """With the same weights and ordinary links."""
    retuned: Interval | None = None


def measure(
    seeds: Sequence[int],
    *,
    threads: int = 2,
    generations: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[list[ContrastResult], Interval | None]:
    """All contrasts on evaluation `seeds`, and the control, which is None without re-tuning.

    `generations` are those of re-tuning; 0: none.
    """

    def utility(condition: Condition, narrow: bool, params: Sequence[float] | None) -> Floats:
        change = _after(condition.change, thin) if narrow else condition.change
        result = suite.run(
            FAMILIES,
            {POLICY: policy_of(condition, params)},
            seeds,
            threads=threads,
            options=condition.options,
            change=change,
        )
        return result.array("utility")[:, 0, :]

    plain, narrow, again = {}, {}, {}
    for name, condition in CONDITIONS.items():
        progress(f"playing {name}")
        plain[name] = utility(condition, False, None)
        narrow[name] = utility(condition, True, None)
        if generations > 0:
            progress(f"tuning {name}")
            again[name] = utility(condition, False, _retune(condition, generations, threads))
    results = []
    for contrast in CONTRASTS:
        one, two = contrast.with_, contrast.without
        difference = 1e3 * (plain[one] - plain[two])
        results.append(
            ContrastResult(
                contrast=contrast,
                same=over_families(difference),
                same_thin=over_families(1e3 * (narrow[one] - narrow[two])),
                by_family=tuple(over_families(row[None]) for row in difference),
                retuned=over_families(1e3 * (again[one] - again[two])) if again else None,
            )
        )
    control = over_families(1e3 * (again["as tuned"] - plain["as tuned"])) if again else None
    return results, control


def _retune(condition: Condition, generations: int, threads: int) -> list[float]:
    """The result of a short search around the tuned values: narrow, because they are good."""
    policy = policy_of(condition)
    settings = tune.TuneSettings(
        seed=7,
        threads=threads,
        start=policy.params,
        step=0.05,
        change=condition.change,
        options=condition.options,
    )
    found = tune.tune(POLICY, policy, Budget(steps=generations), settings)
    return list(found.params.values())


def markdown(
    results: Sequence[ContrastResult], control: Interval | None, seeds: Sequence[int], command: str
) -> str:
    """The section of docs/benchmark.md."""
    families = ", ".join(name.replace("_", " ") for name in FAMILIES)
    text = (
        f"`{command}`: {POLICY}, families {families}; {len(seeds)} held-out seeds "
        f"({seeds[0]:,} … {seeds[-1]:,}). Difference of mean expected utility × 10⁻³, ± half a "
        "95 % confidence interval clustered by seed. *Thin*: links between servers at a fifth of "
        "the bandwidth."
    )
    headings = ["what", "same weights", "thin, same weights"]
    rows = []
    for each in results:
        row = [each.contrast.name, _thousandths(each.same), _thousandths(each.same_thin)]
        if each.retuned is not None:
            row.insert(2, _thousandths(each.retuned))
        rows.append(row)
    if results and results[0].retuned is not None:
        headings.insert(2, "both re-tuned")
    parts = [text, table(headings, rows)]
    if control is not None:
        parts.append(
            "Control: the same search under the conditions for which the parameters were tuned "
            f"gains {_thousandths(control)}."
        )
    wide = [
        [each.contrast.name, *(f"{value.mean:+.1f}" for value in each.by_family)]
        for each in results
    ]
    names = [name.replace("_", " ") for name in FAMILIES]
    parts.append("By family, same weights:\n\n" + table(["what", *names], wide))
    return "\n\n".join(parts)


def _thousandths(value: Interval) -> str:
    return f"{value:+.1f}"
