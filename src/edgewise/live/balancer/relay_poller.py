"""Perfect knowledge of the network: reads the links' state from the relays into the belief.

Only with ``network_state: emulator``, to study policies apart from how well bandwidth is measured.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any

from edgewise.errors import BadInput, PeerError
from edgewise.network.control import RelayControl
from edgewise.security.identity import Credentials

log = logging.getLogger(__name__)

PERIOD = 0.05
"""s. Traces change several times a second; a call costs relay and balancer under a millisecond."""
RETRY = 1.0
"""s until a relay that did not answer is asked again."""

OnLink = Callable[[str, float, float, float], None]
"""(name, rate bytes/s, round trip s, backlog bytes)"""


def link_figures(state: dict[str, Any]) -> tuple[float, float, float]:
    """(rate bytes/s, round trip s, backlog bytes) from a relay's description of a link.

    The round trip is twice the delay: links come in pairs, and the way back is not always known.
    """
    bits = state["rate_bps"]
    rate = math.inf if bits is None else float(bits) / 8.0
    settings = state["settings"]
    delay = float(settings["delay"]) + 0.5 * float(settings["jitter"])
    return rate, 2.0 * delay, float(state["backlog_bytes"])


async def poll_relay(url: str, on_link: OnLink, credentials: Credentials | None = None) -> None:
    """Read one relay until cancelled. A relay that does not answer is asked again: it may start
    after the balancer."""
    answered = True
    async with RelayControl(url, timeout=2.0, credentials=credentials) as relay:
        while True:
            try:
                for name, state in (await relay.links()).items():
                    on_link(name, *link_figures(state))
            except (PeerError, BadInput) as error:
                if answered:
                    log.warning("%s; the network's last known state is used meanwhile", error)
                answered = False
                await asyncio.sleep(RETRY)
                continue
            answered = True
            await asyncio.sleep(PERIOD)
