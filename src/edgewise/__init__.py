"""edgewise: a network-aware load balancer for inference at the edge."""

__version__ = "0.1.0"
