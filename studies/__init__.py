"""What the learned policy is worth, taken apart: the studies of docs/learning.md.

One module a study, each a function from `Played` (what has been played so far) to Markdown and to
figures. `scripts/learning_studies.py` runs them.
"""
