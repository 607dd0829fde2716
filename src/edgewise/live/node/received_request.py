"""A request as it stands at one server: what is known of it, its body, and how it can end."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from edgewise.domain import Outcome, Request, ShedReason, Stamps, Status
from edgewise.errors import EdgewiseError
from edgewise.live.wire.open_inference import (
    HEADER_LENGTH,
    InferAnswer,
    InferRequest,
    decode_request,
    shed_code,
)
from edgewise.live.wire.upload import Upload


class RequestRefused(EdgewiseError):
    """A request is answered with an HTTP error without having been taken."""

    def __init__(self, code: int, problem: str) -> None:
        self.code = code
        super().__init__(problem)


class ReceivedRequest(Struct, kw_only=True):
    """A request as it stands at this server: what is known of it and its body."""

    request: Request
    body: Upload
    format: Mapping[str, str]
    """Headers that say how the body reads."""
    accepted: float
    model: str | None = None
    """A concrete model the client wants, here; None: whoever decides says."""
    ready_size: int | None = None
    label: int | None = None
    decided: float | None = None
    transferred: float | None = None
    started: float | None = None
    finished: float | None = None
    parsed: InferRequest | None = None

    async def photo(self) -> bytes:
        """The image's bytes, once they are in. Raises WireError, TooLarge."""
        if self.parsed is None:
            body = await self.body.whole()
            self.parsed = decode_request(body, self.format.get(HEADER_LENGTH))
        return self.parsed.photo

    def uploaded(self) -> float | None:
        return self.body.last_at if self.body.done else None

    # -- the answers it can get ------------------------------------------------------------------

    def stamps(self, now: float) -> Stamps:
        """Up to the answer, which begins now."""
        return Stamps(
            accepted=self.accepted,
            uploaded=self.uploaded(),
            decided=self.decided,
            transferred=self.transferred,
            started=self.started,
            finished=self.finished,
            answered=now,
        )

    def _unserved(
        self, status: Status, code: int, reason: str, error: str, now: float
    ) -> InferAnswer:
        outcome = Outcome(
            request=self.request.id, status=status, reason=reason, stamps=self.stamps(now)
        )
        return InferAnswer(outcome=outcome, code=code, error=error)

    def shed(self, reason: ShedReason, now: float, detail: str = "") -> InferAnswer:
        """Refused on purpose."""
        error = f"shed: {reason.value}" + (f" ({detail})" if detail else "")
        return self._unserved(Status.SHED, shed_code(reason), reason.value, error, now)

    def expired(self, now: float, detail: str = "") -> InferAnswer:
        """Too late."""
        error = f"the deadline of {self.request.deadline:g} s has passed"
        error += f" ({detail})" if detail else ""
        return self._unserved(Status.EXPIRED, 504, "deadline", error, now)

    def failed(self, code: int, error: str, now: float) -> InferAnswer:
        """Something broke, or the photo is none."""
        return self._unserved(Status.FAILED, code, error, error, now)


class TransferOrigin(Struct, frozen=True, kw_only=True):
    """What a peer says of a request it transfers here."""

    via: str
    attempt: int
    dispatch: int
    decider: str
