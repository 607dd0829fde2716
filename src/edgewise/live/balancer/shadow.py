"""The table of a shadow policy: what it would have decided, beside what was decided.

The shadow sees the same observations as the deciding policy, so its own memory is right, but the
queues it sees are not those that its own decisions would have caused.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from edgewise.domain import Decision, own_id
from edgewise.live.recorder import RecordTable
from edgewise.live.records import seconds


def shadow_row(shadow: Decision, decision: Decision) -> tuple[Any, ...]:
    """A row of `SHADOW`."""
    first = shadow.ranked[0] if shadow.ranked else None
    return (
        own_id(shadow.request),
        shadow.at,
        shadow.policy,
        shadow.probability,
        shadow.rows[0],
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
            seconds("at"),  # s since the epoch, balancer's clock
            ("policy", pa.string()),  # the shadow
            ("probability", pa.float64()),
            ("row", pa.int32()),  # of the candidate table; the last one sheds
            ("server", pa.string()),  # null = shed
            ("model", pa.string()),
            ("form", pa.int8()),
            ("decided", pa.string()),  # the policy that decided
            ("decided_row", pa.int32()),  # and the row it chose
        ]
    ),
)
"""One row per decision."""
