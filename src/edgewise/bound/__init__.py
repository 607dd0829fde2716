"""How far there is to go: what an episode could have yielded, known in advance.

``known`` (from ``truth``) is what a clairvoyant knows, ``dual`` an upper bound with its proof (over
``plans``), ``clairvoyant`` a plan that can be had, ``standing`` puts policies between the two.
"""
