"""LinUCB over the features of the candidate table. Compiled; learns from rewards on line.

Li, Chu, Langford, Schapire: A contextual-bandit approach to personalized news article
recommendation, WWW 2010, algorithm 1 with one θ for all arms (their shared part): the arms are
described by their features, so what one teaches holds for the others, and fleets of any size fit.

    choose argmax θᵀx + α √(xᵀ A⁻¹ x);   then A += x xᵀ, b += r x, θ = A⁻¹ b

A⁻¹ is kept itself and updated by Sherman-Morrison, A⁻¹ −= (A⁻¹x)(A⁻¹x)ᵀ / (1 + xᵀA⁻¹x), with θ
beside it: 2d + d² numbers whatever the number of decisions. Shedding is known to earn 0.
"""

from __future__ import annotations

import math

import numpy as np

from edgewise.compile import jit
from edgewise.fleet.arrays import Array
from edgewise.fleet.table import (
    C_DEADLINE,
    R_ACCURACY,
    R_FORM,
    R_LATENCY,
    R_LOCAL,
    R_PREPARE,
    R_SERVER,
    R_SERVICE_TIME,
    R_TRANSFER,
    R_WAIT,
    S_BACKLOG,
    S_FAILURE,
    S_REPORT_AGE,
    S_UTILISATION,
    CandidateTable,
)
from edgewise.policy.base import Memory, Parameter, Record, policy
from edgewise.policy.servers import utility

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
"""What a row is described by; all within −1 … 2, so that one ridge fits all."""
D = len(FEATURES)
MEMORY = np.dtype(
    [
        ("started", "f8"),  # 1 once it was set up
        ("theta", "f8", D),
        ("b", "f8", D),
        ("inverse", "f8", (D, D)),  # A⁻¹
        ("scratch", "f8", D),
    ]
)


@jit
def set_up(params: Record, known: Record) -> None:
    """A⁻¹ = I / ridge, unless that has been done."""
    if known.started == 0.0:
        known.started = 1.0
        for i in range(D):
            known.inverse[i, i] = 1.0 / params.ridge


@jit
def describe(table: CandidateTable, row: int, out: Array) -> None:
    """Write the `FEATURES` of a row; of the shed row zeros, which teach nothing."""
    s = int(table.rows[row, R_SERVER])
    if s < 0:
        for i in range(D):
            out[i] = 0.0
        return
    cells = table.rows[row]
    server = table.servers[s]
    deadline = table.context[C_DEADLINE]
    out[0] = 1.0
    out[1] = cells[R_ACCURACY]
    out[2] = utility(table, row, cells[R_LATENCY])
    out[3] = max(-1.0, 1.0 - cells[R_LATENCY] / deadline)
    out[4] = min(2.0, cells[R_SERVICE_TIME] / deadline)
    out[5] = min(2.0, cells[R_WAIT] / deadline)
    out[6] = min(2.0, cells[R_TRANSFER] / deadline)
    out[7] = min(2.0, cells[R_PREPARE] / deadline)
    out[8] = min(2.0, server[S_BACKLOG] / deadline)
    out[9] = server[S_UTILISATION]
    out[10] = min(2.0, server[S_REPORT_AGE])
    out[11] = server[S_FAILURE]
    out[12] = cells[R_LOCAL]
    out[13] = cells[R_FORM]


def learn(params: Record, memory: Memory, features: Array, reward: float) -> None:
    """One rewarded choice. Allocates nothing."""
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
    about="a linear bandit on the candidates' features, learning on line (LinUCB)",
    parameters=(
        Parameter(
            name="alpha",
            default=0.3,
            low=0.0,
            high=3.0,
            unit="utility",
            about="weight of the uncertainty: rewards lie in 0–1, so that a third of their range "
            "is explored at first",
        ),
        Parameter(
            name="ridge",
            default=1.0,
            low=0.01,
            high=100.0,
            about="A starts as ridge × I: the paper's 1",
            log=True,
        ),
    ),
    memory=MEMORY,
    features=D,
    describe=describe,
    learn=learn,
)
def linucb(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Score rows by their upper confidence bound and shed by 0."""
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
