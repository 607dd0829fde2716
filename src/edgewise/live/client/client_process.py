"""The process of the client: ``edgewise client``."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgewise.domain import Outcome, Request, Status
from edgewise.errors import BadInput, MissingExtra, PeerError
from edgewise.live.client.prepared_load import read_load
from edgewise.live.process_config import ClientConfig
from edgewise.live.recorder import Recorder
from edgewise.live.records import CLIENT_NOTES, OUTCOMES, REQUESTS, RUN_SCENARIO
from edgewise.live.startup import freeze_startup_objects
from edgewise.scenario import Scenario, dump, load
from edgewise.score import ScoreShape, score
from edgewise.summary import percentiles_ms

try:
    import uvloop

    from edgewise.live.client.client import Client, Progress, SentRequest
except ImportError as error:
    raise MissingExtra("live", error.name or "aiohttp") from error


def run(
    config: ClientConfig,
    *,
    hold: bool = False,
    name: str | None = None,
    say: Callable[[str, Any], None] = lambda key, value: None,
) -> dict[str, Any]:
    """Send the scenario's requests, write the files, return the counts (`Client.progress`).

    SIGTERM and SIGINT stop the run early; then, too, every request that was sent is in the files
    with its outcome.

    Parameters
    ----------
    hold:
        Send nothing before a line comes on stdin, so that a launcher can start the emulated
        network's time at the same moment.
    name:
        The beginning of the requests' ids. By default it is random, so that a balancer does not
        take a second run for the first one sent again.
    say:
        Called with news for a launcher: ``ready`` once everything has been read, ``progress`` about
        twice a second.

    Raises ScenarioError and ImagesError for files that cannot be read, BadInput for a folder that
    cannot be written, PeerError if no server answered anything, KeyboardInterrupt after SIGINT.
    """
    scenario = load(config.scenario, allow_code=True)  # it runs no policy
    missing = [name for name in scenario.workload.ingress if name not in config.ingress]
    if missing:
        raise BadInput(f"client configuration: ingress: expected an address of {missing[0]!r}")
    shape = ScoreShape.of(scenario.score)
    requests = read_load(scenario, name or secrets.token_hex(4))
    out = None if config.out is None else Path(config.out)
    warm_up(shape)
    freeze_startup_objects()
    with Recorder(out, (REQUESTS, OUTCOMES)) as recorder:

        def on_outcome(entry: SentRequest, outcome: Outcome) -> None:
            recorder.add(REQUESTS, entry.request, entry.image, entry.label)
            recorder.add(OUTCOMES, outcome, score(entry.request, outcome, shape))

        replay = scenario.executor == "replay"
        client = Client(config, requests, shape, on_outcome, send_labels=replay)
        say("ready", {"client": scenario.name, "requests": len(requests)})
        if hold and not sys.stdin.readline():
            return client.progress()  # the launcher is gone
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_until_signal(client, lambda state: say("progress", state)))
        finally:
            if out is not None:
                write_notes(out, scenario, client)
    if len(client.delays) and not client.answers and client.problem:
        say("done", client.progress())
        raise PeerError(f"no server answered any request; the last error: {client.problem}")
    return client.progress()


def warm_up(shape: ScoreShape) -> None:
    """Score once: loading the compiled score takes half a second, and would delay requests."""
    request = Request(id="warm-up", ingress="x", payload_bytes=0, sent_at=0.0, deadline=1.0)
    outcome = Outcome(request="warm-up", status=Status.SERVED, latency=1.0, accuracy=1.0)
    score(request, outcome, shape)


async def _until_signal(client: Client, progress: Progress) -> None:
    """Run the client. SIGTERM ends it as if all had been sent; SIGINT cancels it as usual."""
    task = asyncio.create_task(client.run(progress))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        if not task.cancelled():  # this coroutine was cancelled, not the task
            raise


def write_notes(out: Path, scenario: Scenario, client: Client) -> None:
    """Write what ``edgewise evaluate`` needs besides the tables: the scenario, and the notes."""
    if not (out / RUN_SCENARIO).exists():
        (out / RUN_SCENARIO).write_text(dump(scenario), encoding="utf-8")
    notes = {
        "late_send_ms": percentiles_ms(client.delays),
        "metadata_refused": client.balancer.refused,
        "failed_over": client.failed_over,
        "second_runs": client.second_runs,
        "outcomes_unposted": client.balancer.unposted,
    }
    (out / CLIENT_NOTES).write_bytes(
        msgspec.json.format(msgspec.json.encode(notes), indent=2) + b"\n"
    )
