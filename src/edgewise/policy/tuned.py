# ruff: noqa: E501 (a command is one line)
"""Parameters found by ``edgewise tune``, which writes this file; values by name."""

from __future__ import annotations

from edgewise.policy.tuning import Tuned

TUNED: dict[str, Tuned] = {
    "earliest_completion_margin": Tuned(
        command="edgewise tune earliest_completion_margin --suite train --seed 1 --generations 3 --worlds 16",
        gain="+0.0514 ± 0.0140 utility over the defaults, 64 validation worlds",
        params={
            "margin": 2.64,
        },
    ),
    "infaas": Tuned(
        command="edgewise tune infaas --suite train --seed 1 --generations 3 --worlds 16",
        gain="+0.1153 ± 0.0263 utility over the defaults, 64 validation worlds",
        params={
            "slack": 0.2636,
        },
    ),
    "jellyfish": Tuned(
        command="edgewise tune jellyfish --suite train --seed 1 --generations 3 --worlds 16",
        gain="+0.0459 ± 0.0181 utility over the defaults, 64 validation worlds",
        params={
            "rounds": 4.28,
        },
    ),
    "jiq": Tuned(
        command="edgewise tune jiq --suite train --seed 1 --generations 2 --worlds 16",
        gain="+0.0130 ± 0.0076 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.1256,
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
    "load_aware_locality": Tuned(
        command="edgewise tune load_aware_locality --suite train --seed 1 --generations 3 --worlds 16",
        gain="+0.0504 ± 0.0128 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.02122,
            "variance": 0.2929,
            "memory": 0.5041,
            "probe": 0.01822,
            "period": 0.352,
        },
    ),
    "peak_ewma": Tuned(
        command="edgewise tune peak_ewma --suite train --seed 1 --generations 6 --worlds 16",
        gain="+0.0139 ± 0.0091 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.0559,
            "cold": 0.03815,
        },
    ),
    "peak_ewma_admission": Tuned(
        command="edgewise tune peak_ewma_admission --suite train --seed 1 --generations 4 --worlds 16",
        gain="+0.0559 ± 0.0140 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.4095,
            "cold": 0.9916,
            "margin": 2.28,
            "threshold": 0.007165,
        },
    ),
    "prequal": Tuned(
        command="edgewise tune prequal --suite train --seed 1 --generations 3 --worlds 16",
        gain="+0.0383 ± 0.0141 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.1514,
            "quantile": 0.8365,
            "pool": 14.5,
            "probes": 2.443,
            "age": 1.295,
            "delta": 2.268,
            "reuse": 8.027,
            "idle": 0.3438,
        },
    ),
    "prequal_admission": Tuned(
        command="edgewise tune prequal_admission --suite train --seed 1 --generations 2 --worlds 16",
        gain="+0.0824 ± 0.0227 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.3532,
            "quantile": 0.9946,
            "pool": 15.93,
            "probes": 2.652,
            "age": 1.853,
            "delta": 0.6738,
            "reuse": 2.454,
            "idle": 0.1354,
            "margin": 2.426,
            "threshold": 0.02422,
        },
    ),
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
    "ray_p2c": Tuned(
        command="edgewise tune ray_p2c --suite train --seed 1 --generations 3 --worlds 16",
        gain="+0.0122 ± 0.0126 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.1464,
            "max_ongoing": 2.53,
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
        command="edgewise tune sed_admission --suite train --seed 1 --generations 3 --worlds 16",
        gain="+0.0567 ± 0.0185 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.9303,
            "margin": 2.379,
            "threshold": 0.005208,
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
        command="edgewise tune weighted_round_robin --suite train --seed 1 --generations 4 --worlds 16",
        gain="+0.0346 ± 0.0109 utility over the defaults, 64 validation worlds",
        params={
            "share": 0.05865,
            "blackout": 0.4475,
            "expiration": 591.7,
            "update": 0.1267,
            "penalty": 0.8315,
        },
    ),
}
