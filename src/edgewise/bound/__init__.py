"""Limits of what an episode could have yielded, had everything been known in advance.

`relaxation` (from `timeline`) describes how each request could be served, `dual` proves an upper
bound (over `plans`), `clairvoyant` searches for a plan that can be carried out, and `gap` places
policies between the two.
"""
