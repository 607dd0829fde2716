"""The learned policy and its critic as functions that torch can differentiate.

`Learner.log_probabilities` computes the same softmax(score / temperature) over rows as the compiled
kernel (`edgewise.policies.learned`), which a test checks. `edgewise.learn.ppo` optimises it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.compile import uncompiled
from edgewise.errors import MissingExtra
from edgewise.learn.ppo_settings import PpoSettings
from edgewise.learn.rollout import CRITIC_WIDTH, TERMS, Rollout, argmax_by_decision, batch_index
from edgewise.policies import learned, priced
from edgewise.policies.learned import CLAMP, DEPTH, LAYOUT, SHED_SCALE, WIDTH, P, Q
from edgewise.policies.priced import SQRT_3, Factors, RowTerms
from edgewise.score import timeliness_of

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise MissingExtra("train", "torch") from error

Floats = NDArray[np.float64]

# The formula of the compiled kernel, on tensors.
margined_latency = uncompiled(priced.margined_latency)
deviation = uncompiled(priced.deviation)
combined = uncompiled(priced.combined)

SCALES = {
    "server_heads": 0.1,
    "row_heads": 0.1,
    "shed_head": 0.2,
    "server_in": 0.3,
    "row_in": 0.3,
    "hidden": 0.3,
    "bias": 0.3,
    "out": 0.1,
}
"""Scales of the learned parts, as in `edgewise.learn.space`. The heuristic's own parameters are not
learned."""
VALUE_SCALE = 0.3
"""Further factor for the heads that change the value of an answer, in which candidates differ
little."""
HEADS = ("server_heads", "row_heads", "shed_head")
"""The parts that are learned without the network."""


class Learner(nn.Module):
    """The policy and its critic as functions of the optimised numbers."""

    def __init__(self, start: Floats, settings: PpoSettings) -> None:
        super().__init__()
        self._origin = start.copy()
        learned.named(self._origin).options.temperature = settings.temperature
        learned.named(self._origin).options.guarded = 0.0
        learned.named(self._origin).options.network = float(settings.network)
        scale = np.zeros(learned.LENGTH)
        for name, by in SCALES.items():
            scale[LAYOUT[name]] = by if settings.network or name in HEADS else 0.0
        scale[LAYOUT["row_heads"].start + Q : LAYOUT["row_heads"].stop] *= VALUE_SCALE
        scale[LAYOUT["out"].start + DEPTH : LAYOUT["out"].stop] *= VALUE_SCALE
        self._scale = scale
        self.temperature = settings.temperature
        self.spread = float(learned.named(start).priced.spread)
        self.network = settings.network
        self.x = nn.Parameter(torch.zeros(learned.LENGTH))
        finite = np.where(scale > 0.0, self._origin, 0.0)
        self._start_32 = torch.from_numpy(finite).float()
        self._scale_32 = torch.from_numpy(scale).float()
        last = nn.Linear(64, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.critic = nn.Sequential(
            nn.Linear(CRITIC_WIDTH, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), last
        )
        self.value_scale = 1.0
        """The return that an output of 1 stands for."""

    def params(self) -> Floats:
        """The policy's parameters as the kernel takes them, set to draw rows."""
        params: Floats = self._origin + self._scale * self.x.detach().double().numpy()
        return params

    def value(self, critic_input: Tensor) -> Tensor:
        """The value of states: the discounted return above that of the other plays."""
        out: Tensor = self.critic(critic_input).squeeze(-1) * self.value_scale
        return out

    def scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The scores of rows and of shedding, as `policies.learned.score` has them."""
        w = self._start_32 + self._scale_32 * self.x
        heads = batch.server_features @ w[LAYOUT["server_heads"]].view(5, P).T
        bend = torch.exp(heads[:, 1:].clamp(-CLAMP, CLAMP))  # link, network, wait, spread
        cost, value = (batch.row_features @ w[LAYOUT["row_heads"]].view(2, Q).T).unbind(1)
        if self.network:
            more = self._network(w, batch)
            cost, value = cost + more[:, 0], value + more[:, 1]
        price = heads[:, 0]
        link, network, wait, spread = bend.index_select(0, batch.server).unbind(1)
        home = torch.exp(price.index_select(0, batch.ingress).clamp(-CLAMP, CLAMP))
        terms = RowTerms(*batch.terms.unbind(1))
        factors = Factors(
            cost=torch.exp((price.index_select(0, batch.server) + cost).clamp(-CLAMP, CLAMP)),
            link=link,
            prepare=home.index_select(0, batch.decision),
            network=network,
            wait=wait,
            spread=spread,
            value=nn.functional.softsign(value),
        )
        mean = margined_latency(terms, factors, batch.elapsed[batch.decision])
        off = SQRT_3 * deviation(terms, factors, self.spread)
        deadline, grace = batch.deadline[batch.decision], batch.grace[batch.decision]

        def timely(latency: Tensor) -> Tensor:
            timeliness: Tensor = timeliness_of(latency / deadline, grace)
            return timeliness

        expected = (4.0 * timely(mean) + timely(mean - off) + timely(mean + off)) / 6.0
        rows = combined(terms, factors, expected)
        shift = (batch.request_features @ w[LAYOUT["shed_head"]]).clamp(-CLAMP, CLAMP)
        return rows, batch.threshold + SHED_SCALE * shift

    def _network(self, w: Tensor, batch: Batch) -> Tensor:
        """The network's additions to the two heads of each row, as `policies.learned.network`."""
        server_in = batch.server_features @ w[LAYOUT["server_in"]].view(WIDTH, P).T
        row_in = batch.row_features @ w[LAYOUT["row_in"]].view(WIDTH, Q).T
        h = nn.functional.softsign(server_in.index_select(0, batch.server) + row_in)
        m = len(batch.request_features)
        mean = torch.zeros(m, WIDTH).index_add(0, batch.decision, h)
        mean = mean / batch.counts.clamp_min(1.0)[:, None]
        # The gradient of a maximum is that of its row, so the row is found without a gradient.
        at = torch.from_numpy(argmax_by_decision(h.detach().numpy(), batch.decision.numpy(), m))
        most = h.gather(0, at)
        c, d, e = torch.split(w[LAYOUT["hidden"]].view(DEPTH, 3 * WIDTH).T, WIDTH)
        context = w[LAYOUT["bias"]] + mean @ d + most @ e
        z = nn.functional.softsign(h @ c + context.index_select(0, batch.decision))
        return z @ w[LAYOUT["out"]].view(2, DEPTH).T

    def log_probabilities(self, batch: Batch) -> Tensor:
        """The log-probabilities of the rows that were chosen."""
        rows, shed = self.scores(batch)
        rows, shed = rows / self.temperature, shed / self.temperature
        of = batch.decision
        top = shed.detach().scatter_reduce(0, of, rows.detach(), "amax", include_self=True)
        total = torch.exp(shed - top).index_add(0, of, torch.exp(rows - top[of]))
        padded = torch.cat((rows, shed.new_zeros(1)))  # for shed, −1: any value
        chosen = torch.where(
            batch.chosen >= 0, padded.index_select(0, batch.chosen.clamp_min(0)), shed
        )
        return chosen - top - torch.log(total)


class Batch:
    """A batch of decisions of a rollout, as tensors."""

    def __init__(self, played: Rollout, which: NDArray[np.int64]) -> None:
        index = batch_index(played.decisions, played.server, which)
        some = played.decisions[which]
        rows = torch.from_numpy(played.rows[index.rows])
        self.terms, self.row_features = torch.split(rows, [len(TERMS), Q], 1)
        self.server_features = torch.from_numpy(played.server_features[index.servers])
        self.request_features = torch.from_numpy(played.request_features[which])
        self.critic_input = torch.from_numpy(played.critic_input[which])
        self.decision = torch.from_numpy(index.decision)
        self.server = torch.from_numpy(index.server)
        self.ingress = torch.from_numpy(index.ingress)
        self.chosen = torch.from_numpy(index.chosen)
        self.counts = torch.from_numpy(some["rows"].astype(np.float32))
        self.deadline, self.grace, self.elapsed, self.threshold, self.before = (
            torch.from_numpy(some[name].copy())
            for name in ("deadline", "grace", "elapsed", "threshold", "log_probability")
        )
