"""Requests that go on to another server, as they came or made ready for its model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from edgewise.domain import Attempt, Candidate, Fault, PayloadForm, Service, Status
from edgewise.errors import EdgewiseError, ImagesError, PeerError
from edgewise.live.clock import Clock
from edgewise.live.node.converter import Converter
from edgewise.live.node.local_runner import ServerFailed
from edgewise.live.node.peers import (
    PeerClient,
    PeerUnreachable,
    TransferPayload,
    TransferRequest,
)
from edgewise.live.node.received_request import ReceivedRequest
from edgewise.live.node.worker_queue import RequestExpired
from edgewise.live.wire.open_inference import InferAnswer, encode_request
from edgewise.live.wire.upload import Upload

BAD_REQUEST_CODES = frozenset({400, 413, 422})
"""HTTP codes with which a server says that the request cannot be used."""
CHECKED_SIZE = 64
"""Pixels to which a photo is converted only to see whether it can be decoded."""


class AttemptFailed(PeerError):
    """A peer has given no answer that can be used; `fault` says whose failure that is."""

    def __init__(self, fault: Fault, problem: str, too_late: bool = False) -> None:
        self.fault = fault
        self.too_late = too_late
        """No time is left for another peer."""
        super().__init__(problem)


def fault_of(answer: InferAnswer, expired: bool) -> Fault | None:
    """Whose failure an answer is; None: it is served. `expired`: the deadline has passed."""
    code, status = answer.code, answer.outcome.status
    if answer.served:
        return None
    if code in BAD_REQUEST_CODES:
        return Fault.BAD_REQUEST
    if code == 408:
        return Fault.UNDELIVERED
    if code in (409, 429) or status is Status.SHED:
        return Fault.REFUSED
    if status is Status.EXPIRED and expired:  # it waited too long there, as it would have here
        return Fault.UNANSWERED
    return Fault.ERROR


class Forwarder:
    """Transfers requests to peers.

    Parameters
    ----------
    fleet:
        Every service of the fleet by (server, model).
    """

    def __init__(
        self,
        peers: PeerClient,
        converter: Converter,
        fleet: Mapping[tuple[str, str], Service],
        clock: Clock,
    ) -> None:
        self._peers = peers
        self._converter = converter
        self._fleet = fleet
        self._clock = clock

    async def payload_for(
        self, received: ReceivedRequest, candidate: Candidate, worthless_at: float
    ) -> TransferPayload:
        """The photo made ready for the candidate's model.

        Raises ImagesError for a photo that cannot be converted, ServerFailed if the converter
        fails, RequestExpired if it has not begun at `worthless_at`, AttemptFailed for a model that
        the server does not have.
        """
        service = self._fleet.get((candidate.server, candidate.model))
        if service is None:
            raise AttemptFailed(Fault.ERROR, f"has no model {candidate.model}")
        size = service.input_size
        ready = await self._convert(received, size, worthless_at)
        headers, encoded = encode_request(ready)
        return TransferPayload(Upload.of(encoded, self._clock.now()), headers, size)

    def original(self, received: ReceivedRequest) -> TransferPayload:
        """The body as it comes in."""
        return TransferPayload(received.body, received.body_headers, None)

    async def can_decode(self, received: ReceivedRequest, worthless_at: float) -> bool:
        """Whether the photo can be decoded here; True where that cannot be found out."""
        try:
            await self._convert(received, CHECKED_SIZE, worthless_at)
        except ImagesError:
            return False
        except (ServerFailed, RequestExpired):
            return True
        return True

    async def _convert(self, received: ReceivedRequest, size: int, worthless_at: float) -> bytes:
        photo = await received.photo()
        try:
            return await self._converter.convert(photo, size, received.request.due, worthless_at)
        except EdgewiseError:
            raise
        except Exception as error:
            raise ServerFailed.because("the converter", error) from error

    async def send(
        self,
        received: ReceivedRequest,
        candidate: Candidate,
        transfer: TransferRequest,
        give_up_at: float,
    ) -> InferAnswer:
        """Send a request to the candidate's server and return the answer.

        The stamps that the peer does not have are this server's. Raises AttemptFailed if the peer
        or the path to it fails, or if nothing has come at `give_up_at`. If the request expires
        meanwhile, the attempt is added to `received`.
        """
        fault = Fault.UNDELIVERED

        def on_arrival() -> None:
            nonlocal fault
            fault = Fault.UNANSWERED

        try:
            async with asyncio.timeout(max(0.0, give_up_at - self._clock.now())):
                answer = await self._peers.send(candidate.server, transfer, on_arrival)
        except TimeoutError:
            raise AttemptFailed(fault, "no answer in time", too_late=True) from None
        except asyncio.CancelledError:
            if received.request.expired(self._clock.now()):
                received.attempts.append(Attempt(candidate.server, fault))
            raise
        except PeerUnreachable as error:
            raise AttemptFailed(Fault.UNREACHABLE, str(error)) from None
        except PeerError as error:
            raise AttemptFailed(Fault.ERROR, str(error)) from None
        outcome = answer.outcome
        stamps = msgspec.structs.replace(
            received.stamps(self._clock.now()),
            transferred=outcome.stamps.transferred,
            started=outcome.stamps.started,
            finished=outcome.stamps.finished,
        )
        ready = transfer.payload.ready_size is not None
        form = PayloadForm.MODEL_READY if ready else PayloadForm.ORIGINAL
        outcome = msgspec.structs.replace(
            outcome, stamps=stamps, form=form if outcome.server else None
        )
        return msgspec.structs.replace(answer, outcome=outcome)
