"""The units of traffic: the relay's chunk and the network's packet."""

CHUNK_BYTES = 16 * 1024
"""Bytes that a relay sends at a time. 64 KiB made 64 flows unfair (first/last finish 0.21); 1,500
bytes cost 92 % of a core at 500 Mbit/s; 16 KiB gave 0.83 and 12-33 %."""

PACKET_BYTES = 1500
"""One Ethernet packet. A 16 KiB chunk is eleven of them."""
