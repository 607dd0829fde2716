"""A client's HTTP request before it is a `Request`: its headers checked, its body read in time."""

from __future__ import annotations

import asyncio
import uuid

import msgspec
from aiohttp import hdrs, web

from edgewise.domain import Request, owned_id
from edgewise.errors import WireError
from edgewise.live.clock import Clock
from edgewise.live.node.received_request import RequestRefused
from edgewise.live.wire.http_server import Usage
from edgewise.live.wire.open_inference import HEADER_LENGTH, decode_request, is_raw_photo
from edgewise.live.wire.request_metadata import HEADER, from_both, from_headers, is_complete
from edgewise.live.wire.upload import NoRoom, TooLarge, TooSlow, Upload
from edgewise.security import access

DEADLINE_DEFAULT = 1.0
"""s for a client that names none: the longest that leaves a person's flow of thought unbroken
(Nielsen, Usability Engineering, 1993, §5.5)."""
CODINGS = ("", "identity", "gzip", "deflate")
"""Values of Content-Encoding that the server undoes."""


def new_upload(http: web.Request, limit: int) -> Upload:
    """The upload for a request's body. Raises TooLarge, and RequestRefused for a wrong coding."""
    coding = http.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower()
    if coding not in CODINGS:
        raise RequestRefused(415, f"expected a Content-Encoding of gzip or deflate, got {coding!r}")
    length = http.content_length
    if length is not None and length > limit:
        raise TooLarge(limit)
    # The length of a compressed body says nothing about the photo's.
    return Upload(length if coding in CODINGS[:2] else None, limit)


def headers_suffice(http: web.Request) -> bool:
    """Whether the headers say enough to decide, so that the body is not waited for."""
    return is_complete(http.headers) or is_raw_photo(http.headers.get(hdrs.CONTENT_TYPE))


async def read_body(http: web.Request, body: Upload, usage: Usage, clock: Clock) -> None:
    """Feed `body` from the connection. If that fails, the readers of `body` raise the reason."""
    limits = usage.limits
    progress = limits.body_progress_timeout
    if not headers_suffice(http):  # nothing is known of the request: no deadline ends it
        progress = min(progress, DEADLINE_DEFAULT)
    held = 0
    late = "body_timeout"
    try:
        async with asyncio.timeout(limits.body_timeout):
            while True:
                try:
                    async with asyncio.timeout(progress):
                        chunk = await http.content.readany()
                except TimeoutError:
                    late = "body_progress_timeout"
                    raise
                if not chunk:
                    break
                held += len(chunk)
                usage.upload_bytes += len(chunk)
                if usage.upload_bytes > limits.upload_bytes:
                    usage.reached["upload_bytes"] += 1
                    raise NoRoom("the bodies that come in take all the memory that they may")
                body.feed(chunk, clock.now())
        body.finish(clock.now())
    except TooLarge:
        pass  # the readers of the body raise it
    except TimeoutError:
        usage.reached[late] += 1
        body.fail(TooSlow("the body did not come in time"))
    except NoRoom as error:
        body.fail(error)
    except Exception as error:
        body.fail(WireError("", f"the body broke off: {type(error).__name__}"))
    finally:
        usage.upload_bytes -= held


async def read_metadata(
    http: web.Request, model: str, body: Upload, accepted: float, server: str, task: str
) -> Request:
    """The metadata of a request that arrived at `server`, from headers, parameters or both.

    It comes from the headers alone if they say all that a decision needs; else the body is waited
    for. The path names the model, and what nobody says gets its default. Raises WireError, and
    RequestRefused for a task that is not the fleet's.
    """
    defaults = {
        "id": uuid.uuid4().hex,
        "ingress": server,
        "payload_bytes": http.content_length or 0,
        "sent_at": accepted,
        "deadline": DEADLINE_DEFAULT,
        "task": task,
    }
    if headers_suffice(http):
        request = from_headers(http.headers, accepted, defaults)
    else:
        content = decode_request(await body.whole(), http.headers.get(HEADER_LENGTH))
        request = from_both(http.headers, content.parameters, accepted, defaults)
    if "/" in request.id:
        raise WireError(HEADER + "id", f"expected an id without /, got {request.id!r:.60}")
    who = access.caller(http)
    if who is not None:
        request = msgspec.structs.replace(request, id=owned_id(who.owner, request.id))
    if request.ingress != server:
        raise WireError(HEADER + "ingress", f"expected {server!r}, got {request.ingress!r}")
    if request.task != task:
        raise RequestRefused(404, f"unknown task {request.task!r}; this fleet has {task!r}")
    if model == task:
        return request
    if request.named_model not in (None, model):
        raise WireError(
            HEADER + "named-model",
            f"expected the model of the path, {model!r}, got {request.named_model!r}",
        )
    return msgspec.structs.replace(request, named_model=model)
