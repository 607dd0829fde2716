"""Registers the environments with Gymnasium when it is imported.

- ``edgewise/Balance-v0``: one row of figures per candidate, observation (R, columns);
- ``edgewise/BalanceFlat-v0``: the same figures in one dimension, for libraries that take no other
  Box.

Gymnasium 1.0 stopped loading plug-ins by entry point, so it cannot find these ids by itself. It
imports a module that is named in front of the id::

    gymnasium.make("edgewise.gym:edgewise/Balance-v0", scenario="three-sites")
    gymnasium.make_vec("edgewise.gym:edgewise/BalanceFlat-v0", num_envs=64, family="train")

After ``import edgewise.gym`` the part before the colon can be left out.
"""

from __future__ import annotations

from edgewise.errors import MissingExtra

try:
    import gymnasium
except ImportError as error:
    raise MissingExtra("train", "gymnasium") from error

OBSERVATION_OF = {"edgewise/Balance-v0": "table", "edgewise/BalanceFlat-v0": "flat"}
"""The ids, each with its `observation` unless the caller names another."""

for _id, _observation in OBSERVATION_OF.items():
    gymnasium.register(
        id=_id,
        entry_point="edgewise.sim.env.environment:BalanceEnv",
        vector_entry_point="edgewise.sim.env.vector:BalanceVectorEnv",
        kwargs={"observation": _observation},
    )
