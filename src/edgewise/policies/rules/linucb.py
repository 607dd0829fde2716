"""LinUCB on features of the candidate table: a bandit that learns from rewards online. Compiled.

Li, Chu, Langford, Schapire: A contextual-bandit approach to personalized news article
recommendation, WWW 2010, algorithm 1 with one θ for all arms (their shared part). The features
describe the arms, so a reward for one arm teaches about the others, and a fleet may have any size.

    choose argmax θᵀx + α √(xᵀ A⁻¹ x);   then A += x xᵀ, b += r x, θ = A⁻¹ b

The memory holds A⁻¹, b and θ: 2d + d² numbers, however many decisions are made. A⁻¹ is updated by
the Sherman-Morrison formula, A⁻¹ −= (A⁻¹x)(A⁻¹x)ᵀ / (1 + xᵀA⁻¹x). Shedding is known to earn 0.
"""

from __future__ import annotations

import math

import numpy as np

from edgewise.compile import jit
from edgewise.fleet.arrays import Array, Record
from edgewise.fleet.table import CandidateTable
from edgewise.policies.base import Memory, Parameter, policy
from edgewise.policies.servers import utility

FEATURES = (
    "one",
    "accuracy",
    "predicted utility",
    "predicted timeliness headroom: 1 − latency / deadline, −1 to 1",
    "service time / deadline, at most 2",
    "wait / deadline, at most 2",
    "transfer / deadline, at most 2",
    "prepare / deadline, at most 2",
    "backlog / deadline, at most 2",
    "utilisation",
    "age of the report / s, at most 2",
    "share of failed answers",
    "local",
    "model-ready",
)
"""The features of a row. All lie between −1 and 2, so that one ridge suits all of them."""
D = len(FEATURES)
MEMORY = np.dtype(
    [
        ("started", "f8"),  # 1 after `set_up`
        ("theta", "f8", D),
        ("b", "f8", D),
        ("inverse", "f8", (D, D)),  # A⁻¹
        ("scratch", "f8", D),
    ]
)


@jit
def set_up(params: Record, known: Record) -> None:
    """Set A⁻¹ to I / ridge before the first decision."""
    if known.started == 0.0:
        known.started = 1.0
        for i in range(D):
            known.inverse[i, i] = 1.0 / params.ridge


@jit
def describe(table: CandidateTable, row: int, out: Array) -> None:
    """Write the features of a row to `out`; zeros for the shed row, which teaches nothing."""
    s = int(table.rows.server[row])
    if s < 0:
        for i in range(D):
            out[i] = 0.0
        return
    server = table.servers[s]
    deadline = table.context.deadline
    out[0] = 1.0
    out[1] = table.rows.accuracy[row]
    out[2] = utility(table, row, table.rows.latency[row])
    out[3] = max(-1.0, 1.0 - table.rows.latency[row] / deadline)
    out[4] = min(2.0, table.rows.service_time[row] / deadline)
    out[5] = min(2.0, table.rows.wait[row] / deadline)
    out[6] = min(2.0, table.rows.transfer[row] / deadline)
    out[7] = min(2.0, table.rows.prepare[row] / deadline)
    out[8] = min(2.0, server.backlog / deadline)
    out[9] = server.utilisation
    out[10] = min(2.0, server.report_age)
    out[11] = server.failure
    out[12] = table.rows.local[row]
    out[13] = table.rows.form[row]


def learn(params: Record, memory: Memory, features: Array, reward: float) -> None:
    """Update A⁻¹, b and θ with the reward of one choice. Allocates nothing."""
    known = memory.fleet
    set_up(params, known)
    along = known.scratch
    scale = 1.0
    for i in range(D):
        along[i] = 0.0
        for j in range(D):
            along[i] += known.inverse[i, j] * features[j]
        scale += features[i] * along[i]
    for i in range(D):
        for j in range(D):
            known.inverse[i, j] -= along[i] * along[j] / scale
        known.b[i] += reward * features[i]
    for i in range(D):
        theta = 0.0
        for j in range(D):
            theta += known.inverse[i, j] * known.b[j]
        known.theta[i] = theta


@policy(
    about="a linear bandit on the candidates' features that learns online (LinUCB)",
    parameters=(
        Parameter(
            name="alpha",
            default=0.3,
            low=0.0,
            high=3.0,
            unit="utility",
            about="Weight of the uncertainty in the score. Rewards lie between 0 and 1, so 0.3 is "
            "about a third of their range.",
        ),
        Parameter(
            name="ridge",
            default=1.0,
            low=0.01,
            high=100.0,
            about="A starts as ridge × I. The paper uses 1.",
            log=True,
        ),
    ),
    memory=MEMORY,
    features=D,
    describe=describe,
    learn=learn,
)
def linucb(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Score each row by the upper confidence bound of its reward, and shedding by 0."""
    known = memory.fleet
    set_up(params, known)
    x = known.scratch
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0:
            table.scores[r] = -math.inf
            continue
        describe(table, r, x)
        mean = 0.0
        variance = 0.0
        for i in range(D):
            mean += known.theta[i] * x[i]
            along = 0.0
            for j in range(D):
                along += known.inverse[i, j] * x[j]
            variance += x[i] * along
        table.scores[r] = mean + params.alpha * math.sqrt(max(0.0, variance))
    table.scores[table.mask.size - 1] = 0.0
    return 1.0
