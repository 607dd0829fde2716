"""How far there is to go: what an episode could have yielded, known in advance.

``known`` is what a clairvoyant knows, ``dual`` an upper bound with its proof, ``clairvoyant`` a
plan that can be had, ``standing`` puts policies between the two.
"""
