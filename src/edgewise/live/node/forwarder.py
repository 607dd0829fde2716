"""Requests that go on to another server, as they came or made ready for its model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from edgewise.domain import Candidate, PayloadForm, Service
from edgewise.errors import PeerError
from edgewise.live.clock import Clock
from edgewise.live.node.converter import Converter
from edgewise.live.node.peers import PeerClient, TransferPayload, TransferRequest
from edgewise.live.node.received_request import ReceivedRequest
from edgewise.live.wire.open_inference import InferAnswer, encode_request
from edgewise.live.wire.upload import Upload


class NoAnswerInTime(PeerError):
    """A peer has not answered while its answer could still score."""


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
        """The payload in the candidate's form: the body itself, or its photo made ready.

        Raises ImagesError for a photo that cannot be converted, RequestExpired if the converter has
        not begun at `worthless_at`, PeerError for a model that the server does not have.
        """
        if candidate.form is PayloadForm.ORIGINAL or received.ready_size is not None:
            return TransferPayload(received.body, received.body_headers, received.ready_size)
        service = self._fleet.get((candidate.server, candidate.model))
        if service is None:
            raise PeerError(f"{candidate.server}: has no model {candidate.model}")
        photo = await received.photo()
        size = service.input_size
        ready = await self._converter.convert(photo, size, received.request.due, worthless_at)
        headers, encoded = encode_request(ready)
        return TransferPayload(Upload.of(encoded, self._clock.now()), headers, size)

    async def send(
        self,
        received: ReceivedRequest,
        candidate: Candidate,
        transfer: TransferRequest,
        give_up_at: float,
    ) -> InferAnswer:
        """Send a request to the candidate's server and return the answer.

        The stamps that the peer does not have are this server's. Raises NoAnswerInTime at
        `give_up_at`, PeerError if the peer fails.
        """
        try:
            async with asyncio.timeout(max(0.0, give_up_at - self._clock.now())):
                answer = await self._peers.send(candidate.server, transfer)
        except TimeoutError:
            raise NoAnswerInTime(f"{candidate.server}: no answer in time") from None
        outcome = answer.outcome
        stamps = msgspec.structs.replace(
            received.stamps(self._clock.now()),
            transferred=outcome.stamps.transferred,
            started=outcome.stamps.started,
            finished=outcome.stamps.finished,
        )
        outcome = msgspec.structs.replace(
            outcome, stamps=stamps, form=candidate.form if outcome.server else None
        )
        return msgspec.structs.replace(answer, outcome=outcome)
