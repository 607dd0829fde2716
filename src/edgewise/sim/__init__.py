"""An event-driven, compiled simulator that uses the live balancer's belief, policies and score.

``build`` makes a simulation of a scenario, ``engine`` runs it, ``results`` reads its results.
"""
