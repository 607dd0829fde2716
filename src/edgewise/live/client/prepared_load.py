"""What the client sends: the requests of a run with the bytes and the right class of each.

Everything is read before the first request is due: a disk must not decide when one is sent.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from edgewise.domain import DEFAULT_TASK, Request, request_id
from edgewise.fleet.request_noise import replay_label
from edgewise.scenario import LognormalPayload, Scenario
from edgewise.tasks import task_of
from edgewise.worlds.workload import Trace, generate


class PreparedLoad(Struct, frozen=True, kw_only=True):
    """A run's requests, ready to be sent."""

    task: str = DEFAULT_TASK
    trace: Trace
    ids: tuple[str, ...]
    servers: tuple[str, ...]
    payloads: dict[int, bytes]
    """By index of the image."""
    labels: tuple[int, ...]
    """The right class per request."""
    names: dict[int, str]
    """File names by index of the image; empty if payloads are made up."""

    def __len__(self) -> int:
        return len(self.ids)

    def request(self, index: int, sent_at: float) -> Request:
        """The metadata of a request sent at `sent_at`."""
        trace = self.trace
        return Request(
            id=self.ids[index],
            ingress=self.servers[int(trace.ingress[index])],
            payload_bytes=int(trace.payload_bytes[index]),
            sent_at=sent_at,
            deadline=float(trace.deadline[index]),
            accuracy=float(trace.accuracy[index]),
            task=self.task,
        )

    def image_name(self, index: int) -> str | None:
        return self.names.get(int(self.trace.image[index]))

    def payload(self, index: int) -> bytes:
        """The photo, or as many made-up bytes as were drawn."""
        data = self.payloads[int(self.trace.image[index])]
        return data[: int(self.trace.payload_bytes[index])]


def read_load(scenario: Scenario, run: str) -> PreparedLoad:
    """Draw the requests of `scenario` and read the photos they need; `run` begins their ids.

    The same `run` and seed give the same ids: what the replay executor draws by them is then the
    same under every policy.

    Raises ImagesError for a photo that cannot be read, ScenarioError as `workload.generate`.
    """
    made_up = isinstance(scenario.workload.payload, LognormalPayload)
    task = task_of(scenario.task)
    images = None if made_up else task.samples(scenario.workload.images)
    trace = generate(scenario, None if images is None else [image.size() for image in images])
    ids = tuple(request_id(number, run) for number in range(len(trace)))
    names: dict[int, str] = {}
    labels: tuple[int, ...]
    if images is None:
        # One block, of which each request gets the beginning; random, so that nothing compresses.
        rng = np.random.default_rng(scenario.seed)
        payloads = {0: rng.bytes(int(trace.payload_bytes.max(initial=1)))}
        # Nobody can look at such a payload: replay and client agree on what it shows by its id.
        labels = tuple(replay_label(each, task.classes) for each in ids)
    else:
        used = [int(index) for index in np.unique(trace.image)]
        payloads = {index: images[index].read() for index in used}
        names = {index: images[index].name for index in used}
        labels = tuple(images[int(index)].label for index in trace.image)
    return PreparedLoad(
        task=scenario.task,
        trace=trace,
        ids=ids,
        servers=scenario.server_names,
        payloads=payloads,
        labels=labels,
        names=names,
    )
