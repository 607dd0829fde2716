"""Gymnasium environments: one simulation, or many stepped by one compiled call."""
