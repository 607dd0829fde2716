"""A request as one server has it: its metadata, its body, its stamps, and the ways it can end."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from edgewise.domain import Attempt, Outcome, Request, ShedReason, Stamps, Status
from edgewise.errors import EdgewiseError
from edgewise.live.wire.open_inference import (
    HEADER_LENGTH,
    InferAnswer,
    InferRequest,
    decode_request,
    shed_code,
)
from edgewise.live.wire.request_metadata import check_agreement
from edgewise.live.wire.upload import Upload


class RequestRefused(EdgewiseError):
    """The node answers with an HTTP error and does not take the request."""

    def __init__(self, code: int, problem: str) -> None:
        self.code = code
        super().__init__(problem)


class ReceivedRequest(Struct, kw_only=True):
    """A request at this server. The stamps are filled in as it gets on; see `domain.Stamps`."""

    request: Request
    body: Upload
    body_headers: Mapping[str, str]
    """The HTTP headers that say how to read the body."""
    accepted: float
    model: str | None = None
    """The model of this server that the sender of a transfer asks for; None: the command says."""
    ready_size: int | None = None
    """Input size that the payload was made ready for; None: the original photo."""
    label: int | None = None
    """The right class, sent along for the replay executor only."""
    decided: float | None = None
    transferred: float | None = None
    started: float | None = None
    finished: float | None = None
    stated: Mapping[str, str] | None = None
    """The HTTP headers with the client's metadata, which its body must not contradict."""
    attempts: list[Attempt] = []
    """The servers that were tried, in order."""
    parsed: InferRequest | None = None
    """The body's content, once `photo` has been called."""

    async def photo(self) -> bytes:
        """Wait for the body and return the image in it. Raises WireError, BodyRefused."""
        if self.parsed is None:
            headers = self.body_headers
            content = decode_request(
                await self.body.whole(), headers.get(HEADER_LENGTH), headers.get("Content-Type")
            )
            if self.stated is not None and content.parameters:
                check_agreement(self.stated, content.parameters)
            self.parsed = content
        return self.parsed.photo

    def uploaded(self) -> float | None:
        """When the body was in; None while it is still coming."""
        return self.body.last_at if self.body.done else None

    def stamps(self, now: float) -> Stamps:
        """All stamps of an answer that begins at `now`."""
        return Stamps(
            accepted=self.accepted,
            uploaded=self.uploaded(),
            decided=self.decided,
            transferred=self.transferred,
            started=self.started,
            finished=self.finished,
            answered=now,
        )

    # -- answers other than "served" -------------------------------------------------------------

    def shed(
        self,
        reason: ShedReason,
        now: float,
        detail: str = "",
        retry_after: float | None = None,
    ) -> InferAnswer:
        """The answer to a request that is refused on purpose."""
        error = f"shed: {reason.value}" + (f" ({detail})" if detail else "")
        answer = self._unserved(Status.SHED, shed_code(reason), reason.value, error, now)
        return msgspec.structs.replace(answer, retry_after=retry_after)

    def expired(self, now: float, detail: str = "") -> InferAnswer:
        """The answer to a request that came too late, or was kept too long."""
        error = f"the deadline of {self.request.deadline:g} s has passed"
        error += f" ({detail})" if detail else ""
        return self._unserved(Status.EXPIRED, 504, "deadline", error, now)

    def failed(self, code: int, error: str, now: float) -> InferAnswer:
        """The answer when something broke, or when the payload is no image."""
        return self._unserved(Status.FAILED, code, error, error, now)

    def _unserved(
        self, status: Status, code: int, reason: str, error: str, now: float
    ) -> InferAnswer:
        outcome = Outcome(
            request=self.request.id, status=status, reason=reason, stamps=self.stamps(now)
        )
        return InferAnswer(outcome=outcome, code=code, error=error)
