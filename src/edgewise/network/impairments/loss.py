"""Packet loss as a TCP stream sees it: a stall until the packet is resent, or a broken connection.

Packets behind the lost one wait for it in the receiver, so only this stream is held up.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from edgewise.network.impairment import Impairment, Parameters
from edgewise.network.units import PACKET_BYTES


class Loss(Struct, frozen=True):
    loss: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.0
    """[probability] Of losing a packet of 1,500 bytes. Default: none."""
    loss_mode: Literal["stall", "reset"] = "stall"
    """Effect of a loss on a byte stream: *stall* until resent, or *reset* the connection.
    Default: what TCP does."""
    stall: Annotated[float, Meta(ge=0.0, le=60.0)] = 0.2
    """[s] How long a stream waits for a lost packet; again, if the packet is lost again. Default:
    Linux's least retransmission timeout. A fast retransmission takes one round trip only, so this
    is the price of a loss at the end of a burst."""


def extra(parameters: Any, size: float, draw: float, now: float) -> float:
    """Time until every packet has come through.

    All n packets are through after k repetitions with probability (1 − p^(k+1))^n. The inverse of
    that distribution gives k from one number, however often a packet is lost.
    """
    if size <= 0.0:
        return 0.0
    packets = math.ceil(size / PACKET_BYTES)
    worst = 1.0 - draw ** (1.0 / packets)
    if worst >= parameters[0]:
        return 0.0
    if parameters[1] > 0.0:
        return math.inf
    # Rounding can make `worst` 0 for a draw next to 1; 1e-16 bounds the logarithm.
    repeats = math.ceil(math.log(max(worst, 1e-16)) / math.log(parameters[0])) - 1
    stalled: float = parameters[2] * repeats
    return stalled


def may_break(parameters: Parameters) -> bool:
    return parameters[0] > 0.0 and parameters[1] > 0.0


IMPAIRMENT = Impairment(settings=Loss, extra=extra, noise=102, in_order=False, may_break=may_break)
