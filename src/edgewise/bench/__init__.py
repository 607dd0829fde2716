"""Policies held against each other: the suite, its statistics, its tables and pages, the tuner.

``episodes`` plays one policy in one world, ``suite`` all of them in all worlds, ``statistics`` and
``compare`` turn episodes into means with confidence intervals, ``report`` writes them down,
``document`` keeps docs/benchmark.md; ``tune`` finds parameters, ``disciplines`` and ``published``
answer questions of their own.
"""
