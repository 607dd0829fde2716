"""The simulated world: event-driven and compiled, with the live belief, policies and score.

``world`` makes a simulation of a scenario, ``engine`` runs it, ``results`` reads it out.
"""
