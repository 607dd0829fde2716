"""What a second policy would have decided: it is recorded beside what was.

The shadow sees the same observation, which is what the policy in charge made of the world; so its
own memory is right, but the queues it sees are not those it would have caused.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from edgewise.domain import Decision
from edgewise.live.recorder import RecordTable


def shadow_row(other: Decision, decision: Decision) -> tuple[Any, ...]:
    """A row of `SHADOW`: `other` is what the shadow would have decided."""
    first = other.ranked[0] if other.ranked else None
    return (
        other.request,
        other.at,
        other.policy,
        other.probability,
        other.rows[0],
        None if first is None else first.server,
        None if first is None else first.model,
        None if first is None else first.form,
        decision.policy,
        decision.rows[0],
    )


SHADOW = RecordTable(
    "shadow",
    shadow_row,
    pa.schema(
        [
            ("request", pa.string()),
            ("at", pa.float64()),  # s since the epoch, balancer's clock
            ("policy", pa.string()),  # the shadow
            ("probability", pa.float64()),
            ("row", pa.int32()),  # of the candidate table; the last one sheds
            ("server", pa.string()),  # null = shed
            ("model", pa.string()),
            ("form", pa.int8()),
            ("decided", pa.string()),  # who was in charge
            ("decided_row", pa.int32()),  # and the row it chose
        ]
    ),
)
"""One row per decision."""
