"""Compare policies: the suite, its statistics, its tables and pages; and tune their parameters.

``episodes`` plays one policy in one world, ``suite`` all of them in all worlds. ``statistics`` and
``compare`` turn episodes into means with confidence intervals. ``report`` and ``page`` write them
down, and ``document`` keeps docs/benchmark.md. ``tune`` finds parameters.
"""
