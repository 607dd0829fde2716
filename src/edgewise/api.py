"""The verbs of the library: simulate, bench, tune, train, explain.

The command line calls the same functions, so a script and a command give the same numbers.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from edgewise.benchmark import compare, suite
from edgewise.benchmark import tune as tuning
from edgewise.benchmark.compare import SuiteComparison
from edgewise.benchmark.statistics import student_quantile
from edgewise.benchmark.tune import TuneResult, TuneSettings
from edgewise.cores import usable_cores
from edgewise.errors import BadInput, MissingExtra
from edgewise.learn.search import Budget, Progress, seconds
from edgewise.policies import POLICIES, find, labels
from edgewise.policies.base import PolicySpec
from edgewise.policies.explain import Explained
from edgewise.scenario import Scenario, check, load
from edgewise.score import ScoreShape, score
from edgewise.sim.build import SimOptions
from edgewise.sim.simulate import Episode, episodes, summary_of
from edgewise.sim.source import WorldSource
from edgewise.summary import Summary
from edgewise.summary_tables import comparison_tables
from edgewise.worlds import families

if TYPE_CHECKING:
    import pyarrow as pa

    from edgewise.learn.train import TrainResult

Policies = str | PolicySpec | Sequence[str | PolicySpec] | Mapping[str, PolicySpec]
"""One policy or several: names as on the command line, or the specs that `ew.policy` makes; or
specs by the labels that results are to name them by."""


def specs_of(policies: Policies) -> dict[str, PolicySpec]:
    """The policies by the labels under which results name them.

    Raises BadInput for an unknown name, or if two policies would have the same label.
    """
    if isinstance(policies, Mapping):
        return dict(policies)
    listed = [policies] if isinstance(policies, str | PolicySpec) else list(policies)
    label = labels([each for each in listed if isinstance(each, str)])
    found: dict[str, PolicySpec] = {}
    for each in listed:
        name = label[each] if isinstance(each, str) else each.name
        if name in found:
            raise BadInput(f"policies: {name!r} stands twice")
        found[name] = find(each) if isinstance(each, str) else each
    return found


class SimulationResults:
    """The results of `simulate`; printing them shows a comparison of the policies.

    Attributes
    ----------
    scenario:
        What was simulated, with the first seed.
    seeds:
        In the order in which they were given.
    episodes:
        By policy: one finished simulation per seed.

    Examples
    --------
    >>> import edgewise as ew
    >>> results = ew.simulate("smoke", ["round_robin", "local"], seeds=2, duration=5)
    >>> sorted(results.episodes)
    ['local', 'round_robin']
    """

    def __init__(
        self, scenario: Scenario, seeds: Sequence[int], by_policy: dict[str, list[Episode]]
    ) -> None:
        self.scenario = scenario
        self.seeds = tuple(seeds)
        self.episodes = by_policy

    def summary(self) -> Summary:
        """One `Summary` over all seeds: utility, latency, outcomes, and each server's part.

        Examples
        --------
        >>> import edgewise as ew
        >>> summary = ew.simulate("smoke", "local", duration=5).summary()
        >>> 0.0 <= summary.policies[0].utility.expected <= 1.0
        True
        """
        return Summary(
            scenario=self.scenario.name,
            seed=self.scenario.seed,
            policies=tuple(summary_of(name, each) for name, each in self.episodes.items()),
        )

    def outcomes(self) -> pa.Table:
        """A row per request, seed and policy, as a pyarrow table.

        The columns are those of a live run's ``requests.parquet`` and ``outcomes.parquet``, after
        ``policy`` and ``seed``. Times are from the start of the run. A column's metadata has its
        unit, the schema's the versions that made it; ``.to_pandas()`` works where pandas is
        installed. Raises MissingExtra without pyarrow.

        Examples
        --------
        >>> import edgewise as ew
        >>> table = ew.simulate("smoke", "local", duration=5).outcomes()
        >>> table.column("latency").type
        DataType(double)
        >>> table.field("payload_bytes").metadata
        {b'unit': b'bytes'}
        """
        try:
            import pyarrow as pa

            from edgewise.live.recorder import with_versions
            from edgewise.live.records import OUTCOMES, REQUESTS
        except ImportError as error:
            raise MissingExtra("live", error.name or "pyarrow") from None
        shape = ScoreShape.of(self.scenario.score)
        rows = [
            (name, episode.scenario.seed, *REQUESTS.row(request, None, outcome.label), *rest[1:])
            for name, each in self.episodes.items()
            for episode in each
            for request, outcome in zip(episode.requests(), episode.outcomes(), strict=True)
            for rest in [OUTCOMES.row(outcome, score(request, outcome, shape))]
        ]
        fields = [
            pa.field("policy", pa.string()),
            pa.field("seed", pa.int64()),
            *REQUESTS.schema,
            *list(OUTCOMES.schema)[1:],  # the first is the request's id again
        ]
        seen: set[str] = set()
        unique = []
        for field in fields:
            name = field.name if field.name not in seen else f"outcome_{field.name}"
            seen.add(name)
            unique.append(field.with_name(name))
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(unique)
        return pa.table(
            [pa.array(column, field.type) for column, field in zip(columns, unique, strict=True)],
            schema=with_versions(pa.schema(unique)),
        )

    def plot(self, path: str | Path | None = None) -> Any:
        """The distribution of the latency and the utility of every policy, as a plotly figure.

        With `path` the figure is also written there as one HTML page that loads nothing from
        elsewhere. Raises MissingExtra without plotly.

        Examples
        --------
        >>> import edgewise as ew
        >>> figure = ew.simulate("smoke", ["local", "round_robin"], duration=5).plot()
        >>> len(figure.data)
        4
        """
        try:
            from plotly import graph_objects as go
            from plotly.subplots import make_subplots
        except ImportError:
            raise MissingExtra("bench", "plotly") from None
        figure = make_subplots(
            rows=1,
            cols=2,
            column_widths=[0.7, 0.3],
            subplot_titles=("latency of the served requests", "expected utility by seed"),
        )
        for name, each in self.episodes.items():
            results = [episode.sim.world.results for episode in each]
            latency = [x for one in results for x in sorted(one["latency"][one["latency"] >= 0.0])]
            latency.sort()
            share = [(i + 1) / len(latency) for i in range(len(latency))]
            group = {"name": name, "legendgroup": name}
            figure.add_trace(go.Scatter(x=latency, y=share, **group), row=1, col=1)
            utilities = [float(one["utility"].mean()) for one in results]
            box = go.Box(y=utilities, boxpoints="all", showlegend=False, **group)
            figure.add_trace(box, row=1, col=2)
        figure.update_xaxes(title_text="latency [s]", row=1, col=1)
        figure.update_yaxes(title_text="share of the served requests", row=1, col=1)
        figure.update_yaxes(title_text="expected utility", row=1, col=2)
        figure.update_layout(title=f"{self.scenario.name}, {len(self.seeds)} seeds")
        if path is not None:
            figure.write_html(path, include_plotlyjs=True)
        return figure

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=100).print(comparison_tables(self.summary()))
        return text.getvalue()

    def __repr__(self) -> str:
        names = ", ".join(self.episodes)
        return f"<SimulationResults {self.scenario.name}: {names}; {len(self.seeds)} seeds>"


def simulate(
    scenario: str | Path | Scenario,
    policies: Policies = (),
    *,
    seeds: int | Sequence[int] = 1,
    duration: float | None = None,
    rate: float | None = None,
    threads: int = 0,
    options: SimOptions | None = None,
    progress: Callable[[Episode], None] = lambda episode: None,
) -> SimulationResults:
    """Simulate policies in a scenario; all meet the same arrivals, links and service times.

    Parameters
    ----------
    scenario:
        Name of a preset, a file, or a `Scenario`.
    policies:
        Names as on the command line (``sed``, ``my_rules.py:careful``, a file of weights), or what
        `ew.policy` made. By default the scenario's own policy.
    seeds:
        How many worlds, from the scenario's seed on; or the seeds themselves.
    duration, rate:
        s during which requests arrive, and mean requests/s, in place of the scenario's.
    threads:
        Simulations at a time; 0: all cores. The results do not depend on it.
    progress:
        Called with each finished simulation, from any thread.

    Raises BadInput for a scenario or policy that cannot be used.

    Examples
    --------
    >>> import edgewise as ew
    >>> print(ew.simulate("smoke", "local", duration=5).summary().policies[0].policy)
    local
    """
    read = scenario if isinstance(scenario, Scenario) else load(str(scenario))
    world = check(read.with_overrides(duration=duration, rate=rate), read.name)
    specs = specs_of(policies or world.policy)
    wanted = range(world.seed, world.seed + seeds) if isinstance(seeds, int) else tuple(seeds)
    if not wanted:
        raise BadInput("seeds: expected at least one")
    world = world.with_overrides(seed=wanted[0])
    ended = episodes(world, specs, wanted, progress, threads or None, options)
    return SimulationResults(world, wanted, ended)


def bench(
    policies: Policies | None = None,
    *,
    suite_name: str = "quick",
    seeds: int = 8,
    threads: int = 0,
    reference: str | None = None,
    progress: suite.Progress = suite.no_progress,
) -> SuiteComparison:
    """Compare policies in worlds on which nothing was tuned or trained.

    Parameters
    ----------
    policies:
        As in `simulate`; by default all that come with the package.
    suite_name:
        ``standard``, ``quick``, or the name of one family of random worlds.
    seeds:
        Held-out worlds of each family.
    reference:
        Compare with this policy, not with each family's best heuristic.

    Returns means with 95 % intervals and paired differences, by family and over all. Raises
    BadInput for an unknown suite or policy, MissingExtra without scipy.

    Examples
    --------
    >>> import edgewise as ew
    >>> compared = ew.bench(["local", "sed"], suite_name="light", seeds=2)
    >>> sorted(line.policy for line in compared.overall)
    ['local', 'sed']
    """
    return compare.compare(
        play_suite(policies, suite_name, seeds, threads=threads, progress=progress), reference
    )


def play_suite(
    policies: Policies | None,
    suite_name: str,
    seeds: int,
    *,
    threads: int = 0,
    progress: suite.Progress = suite.no_progress,
) -> suite.Result:
    """Simulate every policy in every world of a suite. Raises as `bench` does."""
    student_quantile()  # a missing package should show before the work, not after it
    names = suite.SUITES.get(suite_name)
    if names is None and suite_name in families.FAMILIES:
        names = (suite_name,)
    if names is None:
        known = ", ".join([*suite.SUITES, *families.FAMILIES])
        raise BadInput(f"unknown suite {suite_name!r}; known: {known}")
    return suite.run(
        names,
        dict(POLICIES) if policies is None else specs_of(policies),
        families.evaluation_seeds(seeds),
        suite=suite_name,
        threads=threads or usable_cores(),
        progress=progress,
    )


def tune(
    policy: str | PolicySpec,
    *,
    budget: str | float | None = None,
    generations: int | None = None,
    settings: TuneSettings | None = None,
    progress: Callable[[Progress], None] = lambda step: None,
) -> TuneResult:
    """Search the parameters of a policy on training worlds, by CMA-ES.

    Parameters
    ----------
    budget:
        s, or a text such as ``"2m"``. Give either this or `generations`.
    settings:
        The worlds and the step size; `TuneResult.params` has the values found.

    Raises BadInput for a policy without parameters, MissingExtra without cma.

    Examples
    --------
    >>> import edgewise as ew
    >>> from edgewise.benchmark.tune import TuneSettings
    >>> small = TuneSettings(worlds=2, validation=2)
    >>> sorted(ew.tune("jsq", generations=1, settings=small).params)
    ['share']
    """
    ((name, spec),) = specs_of(policy).items()
    return tuning.tune(name, spec, budget_of(budget, generations), settings, progress)


def budget_of(budget: str | float | None, generations: int | None) -> Budget:
    """The budget of a search. Raises BadInput unless exactly one of the two is given."""
    span = seconds(budget) if isinstance(budget, str) else budget
    return Budget(seconds=span, steps=generations)


def train(
    folder: str | Path,
    *,
    scenario: str | Path | Scenario | None = None,
    family: str | Sequence[str] | None = None,
    budget: str | float | None = None,
    generations: int | None = None,
    progress: Callable[[Progress], None] = lambda step: None,
    **options: Any,
) -> TrainResult:
    """Train the learned policy on your own fleet, or on families of random worlds.

    Parameters
    ----------
    folder:
        Of checkpoints and weights. Training again into it resumes an interrupted run.
    scenario, family:
        The fleet to train on (a preset, a file or a `Scenario`), or families of random worlds;
        by default the family ``train``.
    budget, generations:
        As in `tune`.
    options:
        Further fields of `edgewise.learn.train.TrainOptions`: ``algorithm="ppo"``, ``init``,
        ``seed``, ``worlds``, ``pairs``, ``rate``, ``threads``.

    The path of the weights, ``TrainResult.path``, is a policy's name. Raises BadInput for options
    that cannot be used, MissingExtra without scipy (or, for PPO, torch).

    Examples
    --------
    >>> import edgewise as ew, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +SKIP
    ...     made = ew.train(folder, scenario="three-sites", budget="5m")
    ...     print(ew.simulate("three-sites", [str(made.path), "edgewise"], seeds=10))
    """
    from edgewise.learn.train import TrainOptions
    from edgewise.learn.train import train as run_training

    if scenario is None and family is None:
        family = "train"
    source = WorldSource(scenario=scenario, family=family)
    return run_training(
        TrainOptions(
            source=source, budget=budget_of(budget, generations), folder=Path(folder), **options
        ),
        progress,
    )


def explain(run: str | Path, request: str, policy: str = "") -> Explained:
    """Explain a decision of a run: the score of every candidate, part by part.

    Parameters
    ----------
    run:
        Folder of a policy's run, of ``edgewise up`` or ``edgewise simulate --out``.
    request:
        Its id.
    policy:
        Explain what this policy would have done; by default the one that decided.

    Raises BadInput if there is no such decision, or for a policy without prices.

    Examples
    --------
    >>> import edgewise as ew
    >>> ew.explain("sim", "s1-r0000042").rows[0].score  # doctest: +SKIP
    0.71
    """
    from edgewise.recorded_decision import read_decision

    return read_decision(Path(run), request).explain(policy)
