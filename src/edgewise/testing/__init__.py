"""One trace through the simulator and through the live code on a virtual clock, held together.

What runs live is what a deployment runs: `live.node.node.Node` with its edge, queue, stage,
monitor,
reporter, control channel and HTTP interface, `live.balancer.balancer.Balancer` with its dispatcher,
and
`live.client.client.Client`, with the *replay* executor. Two things are put in their place: the
event loop,
whose time jumps to the next timer (`clock`), and the carrier, which takes messages from one to the
other in this process (`wire`) over links that share as the simulator's do (`links`).

Messages, not bytes: a link carries the payload (photo, or model-ready payload) of each message as
one fluid flow, and headers and envelopes weigh nothing. So what is compared is the logic of both
worlds, to the rounding of floats. What 16 KiB chunks, framing and sockets add is measured
elsewhere, on real relays (`benchmarks/`, `docs/fidelity.md`).

`live.play` and `simulated.play` return the same thing, a `story.Story`; `story.differences` says
where two of them part.
"""
