"""The emulated network: links, traces, and the relay that applies them to real sockets.

``link`` and ``trace`` are pure (no clock, no socket) and serve the simulator as well; ``relay``
is a process of its own. Nothing is imported here, so that the pure half costs no extra.
"""
