"""Parameters found by ``edgewise tune``, which writes this file; values by name."""

from __future__ import annotations

from edgewise.policy.tuning import Tuned
from edgewise.scenario import Scenario

TUNED: dict[str, Tuned] = {
    "priced_greedy": Tuned(
        command="edgewise tune priced_greedy --suite train --seed 1 --generations 39 --worlds 24",
        gain="+0.0149 ± 0.0042 utility over the defaults, 128 validation worlds",
        params={
            "price": 0.4755,
            "speed_exponent": 0.004189,
            "utilisation_gain": 20.53,
            "knee": 0.6029,
            "backlog_gain": 35.37,
            "backlog_scale": 0.5231,
            "fleet_gain": 10.27,
            "captive_gain": 0.2922,
            "link_price": 0.9741,
            "link_gain": 5.324,
            "prepare_share": 1.628,
            "network_margin": 1.81,
            "wait_margin": 1.649,
            "service_margin": 0.8663,
            "spread": 0.5555,
            "network_spread": 0.7073,
            "stale_spread": 0.1271,
            "failure_weight": 0.3853,
            "threshold": -0.07009,
            "threshold_gain": 0.5116,
        },
    ),
    "random": Tuned(
        command="edgewise tune random --suite train --seed 1 --generations 3 --worlds 16",
        gain="+0.0146 ± 0.0079 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.1207,
        },
    ),
    "round_robin": Tuned(
        command="edgewise tune round_robin --suite train --seed 1 --generations 6 --worlds 16",
        gain="+0.0160 ± 0.0083 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.1862,
        },
    ),
}
