"""The policy `edgewise` and its critic as functions that torch can differentiate.

`Learner.log_probabilities` says what the compiled kernel (`edgewise.policies.learned`) says, row by
row, of softmax(score / temperature); a test holds the two together. `edgewise.learn.ppo` optimises
it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.compile import uncompiled
from edgewise.errors import MissingExtra
from edgewise.learn.ppo_settings import PpoSettings
from edgewise.learn.rollout import SEEN, TERMS, Rollout, greatest, pick
from edgewise.policies import learned, priced
from edgewise.policies.learned import CLAMP, DEPTH, LAYOUT, SHED_SCALE, WIDTH, P, Q
from edgewise.policies.priced import SQRT_3, Factors, RowTerms

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise MissingExtra("train", "torch") from error

Floats = NDArray[np.float64]

# The formula of the compiled kernel, on tensors.
margined_latency, deviation, combined = (
    uncompiled(each) for each in (priced.margined_latency, priced.deviation, priced.combined)
)

SCALES = {
    "server_heads": 0.1,
    "row_heads": 0.1,
    "shed_head": 0.2,
    "phi_in": 0.3,
    "psi_in": 0.3,
    "hidden": 0.3,
    "bias": 0.3,
    "out": 0.1,
}
"""Of the parts that are learned, as in `edgewise.learn.space`. The heuristic's parameters stand."""
VALUE_SCALE = 0.3
"""Times that, of the heads that change the worth of an answer: candidates differ little in it."""
HEAD = ("server_heads", "row_heads", "shed_head")


class Learner(nn.Module):
    """The policy and its critic as functions of what is optimised."""

    def __init__(self, start: Floats, settings: PpoSettings) -> None:
        super().__init__()
        self._origin = start.copy()
        learned.named(self._origin).options.temperature = settings.temperature
        learned.named(self._origin).options.guarded = 0.0
        learned.named(self._origin).options.network = float(settings.network)
        scale = np.zeros(learned.LENGTH)
        for name, by in SCALES.items():
            scale[LAYOUT[name]] = by if settings.network or name in HEAD else 0.0
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
            nn.Linear(SEEN, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), last
        )
        self.value_scale = 1.0
        """Of returns: the critic's output 1."""

    def params(self) -> Floats:
        """The policy's, as the kernel takes them; rows are drawn."""
        found: Floats = self._origin + self._scale * self.x.detach().double().numpy()
        return found

    def value(self, seen: Tensor) -> Tensor:
        """Of states: by how much the discounted return beats the other plays'."""
        out: Tensor = self.critic(seen).squeeze(-1) * self.value_scale
        return out

    def scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(of the rows, of shed): `policies.learned.score`, differentiable."""
        w = self._start_32 + self._scale_32 * self.x
        heads = batch.phi @ w[LAYOUT["server_heads"]].view(5, P).T
        bend = torch.exp(heads[:, 1:].clamp(-CLAMP, CLAMP))  # link, network, wait, spread
        cost, value = (batch.psi @ w[LAYOUT["row_heads"]].view(2, Q).T).unbind(1)
        if self.network:
            more = self._network(w, batch)
            cost, value = cost + more[:, 0], value + more[:, 1]
        price = heads[:, 0]
        link, network, wait, spread = bend.index_select(0, batch.server).unbind(1)
        home = torch.exp(price.index_select(0, batch.home).clamp(-CLAMP, CLAMP))
        terms = RowTerms(*batch.terms.unbind(1))
        factors = Factors(
            cost=torch.exp((price.index_select(0, batch.server) + cost).clamp(-CLAMP, CLAMP)),
            link=link,
            prepare=home.index_select(0, batch.of),
            network=network,
            wait=wait,
            spread=spread,
            value=nn.functional.softsign(value),
        )
        mean = margined_latency(terms, factors, batch.elapsed[batch.of])
        off = SQRT_3 * deviation(terms, factors, self.spread)
        deadline, grace = batch.deadline[batch.of], batch.grace[batch.of].clamp_min(1e-9)

        def timely(latency: Tensor) -> Tensor:
            return (1.0 - (latency / deadline - 1.0) / grace).clamp(0.0, 1.0)

        expected = (4.0 * timely(mean) + timely(mean - off) + timely(mean + off)) / 6.0
        rows = combined(terms, factors, expected)
        shift = (batch.omega @ w[LAYOUT["shed_head"]]).clamp(-CLAMP, CLAMP)
        return rows, batch.threshold + SHED_SCALE * shift

    def _network(self, w: Tensor, batch: Batch) -> Tensor:
        """`policies.learned.network`: what it adds to the two heads of each row."""
        phi_in = batch.phi @ w[LAYOUT["phi_in"]].view(WIDTH, P).T
        psi_in = batch.psi @ w[LAYOUT["psi_in"]].view(WIDTH, Q).T
        h = nn.functional.softsign(phi_in.index_select(0, batch.server) + psi_in)
        m = len(batch.omega)
        mean = torch.zeros(m, WIDTH).index_add(0, batch.of, h)
        mean = mean / batch.counts.clamp_min(1.0)[:, None]
        # Where the greatest is, is found without a gradient: that of a maximum is that of its row.
        at = torch.from_numpy(greatest(h.detach().numpy(), batch.of.numpy(), m))
        most = h.gather(0, at)
        c, d, e = torch.split(w[LAYOUT["hidden"]].view(DEPTH, 3 * WIDTH).T, WIDTH)
        context = w[LAYOUT["bias"]] + mean @ d + most @ e
        z = nn.functional.softsign(h @ c + context.index_select(0, batch.of))
        return z @ w[LAYOUT["out"]].view(2, DEPTH).T

    def log_probabilities(self, batch: Batch) -> Tensor:
        """Of the rows that were chosen."""
        rows, shed = self.scores(batch)
        rows, shed = rows / self.temperature, shed / self.temperature
        top = shed.detach().scatter_reduce(0, batch.of, rows.detach(), "amax", include_self=True)
        total = torch.exp(shed - top).index_add(0, batch.of, torch.exp(rows - top[batch.of]))
        padded = torch.cat((rows, shed.new_zeros(1)))  # −1 is shed: any number, not looked at
        chosen = torch.where(
            batch.chosen >= 0, padded.index_select(0, batch.chosen.clamp_min(0)), shed
        )
        return chosen - top - torch.log(total)


class Batch:
    """Some decisions of a rollout as tensors."""

    def __init__(self, played: Rollout, which: NDArray[np.int64]) -> None:
        picked = pick(played.decisions, played.server, which)
        some = played.decisions[which]
        rows = torch.from_numpy(played.rows[picked.rows])
        self.terms, self.psi = torch.split(rows, [len(TERMS), Q], 1)
        self.phi = torch.from_numpy(played.phi[picked.phis])
        self.omega = torch.from_numpy(played.omega[which])
        self.seen = torch.from_numpy(played.seen[which])
        self.of = torch.from_numpy(picked.of)
        self.server = torch.from_numpy(picked.server)
        self.home = torch.from_numpy(picked.home)
        self.chosen = torch.from_numpy(picked.chosen)
        self.counts = torch.from_numpy(some["rows"].astype(np.float32))
        self.deadline, self.grace, self.elapsed, self.threshold, self.before = (
            torch.from_numpy(some[name].copy())
            for name in ("deadline", "grace", "elapsed", "threshold", "log_probability")
        )
