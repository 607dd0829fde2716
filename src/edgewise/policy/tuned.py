# ruff: noqa: E501 (a command is one line)
"""Parameters found by ``edgewise tune``, which writes this file; values by name."""

from __future__ import annotations

from edgewise.policy.tuning import Tuned

TUNED: dict[str, Tuned] = {
    "c3": Tuned(
        command="edgewise tune c3 --suite train --seed 1 --generations 65 --worlds 24",
        gain="+0.0281 ± 0.0083 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.1597,
            "clients": 0.2994,
            "queue_memory": 0.4546,
            "exponent": 1.394,
        },
    ),
    "earliest_completion_margin": Tuned(
        command="edgewise tune earliest_completion_margin --suite train --seed 1 --generations 7 --worlds 24",
        gain="+0.0613 ± 0.0107 utility over the defaults, 64 validation worlds",
        params={
            "margin": 2.933,
        },
    ),
    "infaas": Tuned(
        command="edgewise tune infaas --suite train --seed 1 --generations 7 --worlds 24",
        gain="+0.1618 ± 0.0254 utility over the defaults, 64 validation worlds",
        params={
            "slack": 0.2129,
        },
    ),
    "jellyfish": Tuned(
        command="edgewise tune jellyfish --suite train --seed 1 --generations 7 --worlds 24",
        gain="+0.0787 ± 0.0206 utility over the defaults, 64 validation worlds",
        params={
            "rounds": 5.885,
        },
    ),
    "jiq": Tuned(
        command="edgewise tune jiq --suite train --seed 1 --generations 7 --worlds 24",
        gain="+0.0253 ± 0.0081 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.114,
        },
    ),
    "jsq": Tuned(
        command="edgewise tune jsq --suite train --seed 1 --generations 3 --worlds 16",
        gain="+0.0196 ± 0.0085 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.1589,
        },
    ),
    "least_outstanding": Tuned(
        command="edgewise tune least_outstanding --suite train --seed 1 --generations 5 --worlds 16",
        gain="+0.0168 ± 0.0077 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.1742,
        },
    ),
    "linucb": Tuned(
        command="edgewise tune linucb --suite train --seed 1 --generations 55 --worlds 24",
        gain="+0.0015 ± 0.0054 utility over the defaults, 64 validation worlds",
        params={
            "alpha": 0.08546,
            "ridge": 0.3052,
        },
    ),
    "load_aware_locality": Tuned(
        command="edgewise tune load_aware_locality --suite train --seed 1 --generations 70 --worlds 24",
        gain="+0.0515 ± 0.0149 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.06134,
            "variance": 0.08995,
            "memory": 0.8522,
            "probe": 0.00402,
            "period": 0.1002,
        },
    ),
    "peak_ewma": Tuned(
        command="edgewise tune peak_ewma --suite train --seed 1 --generations 83 --worlds 24",
        gain="+0.0231 ± 0.0076 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.1234,
            "cold": 0.2038,
        },
    ),
    "peak_ewma_admission": Tuned(
        command="edgewise tune peak_ewma_admission --suite train --seed 1 --generations 67 --worlds 24",
        gain="+0.0440 ± 0.0097 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.116,
            "cold": 0.07282,
            "margin": 2.067,
            "threshold": 0.000153,
        },
    ),
    "prequal": Tuned(
        command="edgewise tune prequal --suite train --seed 1 --generations 47 --worlds 24",
        gain="+0.0468 ± 0.0137 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.1065,
            "quantile": 0.9425,
            "pool": 12.1,
            "probes": 2.346,
            "age": 0.2112,
            "delta": 1.613,
            "reuse": 11.59,
            "idle": 0.01202,
        },
    ),
    "prequal_admission": Tuned(
        command="edgewise tune prequal_admission --suite train --seed 1 --generations 51 --worlds 24",
        gain="+0.0702 ± 0.0186 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.4453,
            "quantile": 0.9931,
            "pool": 9.462,
            "probes": 2.316,
            "age": 0.4362,
            "delta": 3.522,
            "reuse": 8.907,
            "idle": 0.6059,
            "margin": 2.061,
            "threshold": 6.983e-05,
        },
    ),
    "priced_greedy": Tuned(
        command="edgewise tune priced_greedy --suite train --seed 1 --generations 545 --worlds 24",
        gain="+0.0205 ± 0.0046 utility over the defaults, 64 validation worlds",
        params={
            "price": 2.468,
            "speed_exponent": 0.3273,
            "utilisation_gain": 13.7,
            "knee": 0.776,
            "backlog_gain": 28.56,
            "backlog_scale": 1.477,
            "fleet_gain": 0.3139,
            "captive_gain": 0.2437,
            "link_price": 1.098,
            "link_gain": 29.72,
            "prepare_share": 1.518,
            "network_margin": 2.608,
            "wait_margin": 1.407,
            "service_margin": 1.016,
            "spread": 0.3255,
            "network_spread": 0.0695,
            "stale_spread": 0.5279,
            "failure_weight": 0.008289,
            "threshold": -0.09335,
            "threshold_gain": 1.075,
        },
    ),
    "random": Tuned(
        command="edgewise tune random --suite train --seed 1 --generations 3 --worlds 16",
        gain="+0.0146 ± 0.0079 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.1207,
        },
    ),
    "ray_p2c": Tuned(
        command="edgewise tune ray_p2c --suite train --seed 1 --generations 81 --worlds 24",
        gain="+0.0391 ± 0.0126 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.1007,
            "max_ongoing": 4.518,
        },
    ),
    "round_robin": Tuned(
        command="edgewise tune round_robin --suite train --seed 1 --generations 6 --worlds 16",
        gain="+0.0160 ± 0.0083 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.1862,
        },
    ),
    "sed": Tuned(
        command="edgewise tune sed --suite train --seed 1 --generations 3 --worlds 16",
        gain="+0.0146 ± 0.0093 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.1188,
        },
    ),
    "sed_admission": Tuned(
        command="edgewise tune sed_admission --suite train --seed 1 --generations 85 --worlds 24",
        gain="+0.0437 ± 0.0112 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.4074,
            "margin": 1.947,
            "threshold": 0.001925,
        },
    ),
    "slo_headroom": Tuned(
        command="edgewise tune slo_headroom --suite train --seed 1 --generations 3 --worlds 16",
        gain="+0.0012 ± 0.0022 utility over the defaults, 64 validation worlds",
        params={
            "explore": 0.004102,
        },
    ),
    "weighted_round_robin": Tuned(
        command="edgewise tune weighted_round_robin --suite train --seed 1 --generations 66 --worlds 24",
        gain="+0.0527 ± 0.0115 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.03382,
            "blackout": 0.1205,
            "expiration": 148.9,
            "update": 0.1281,
            "penalty": 0.9322,
        },
    ),
}
