"""Where scenarios and requests come from: families of random worlds, and workloads."""
