"""The studies behind docs/benchmark.md, docs/learning.md and docs/fidelity.md.

They are run from a clone and are not part of the wheel:

    python -m studies.benchmark STUDY    disciplines, published results
    python -m studies.learning STUDY     the learned policy
    python -m studies.fidelity           the simulator against processes

A study of the learned policy is a function from an `Experiment` to a `Section`: Markdown and data.
"""
