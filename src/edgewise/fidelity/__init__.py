"""How true the simulator is: it and the real processes on the same requests, and what they share.

``compare`` holds two recorded runs against each other, ``worlds`` makes both, ``picture`` draws
them. ``profile`` measures services on this machine; ``calibrate`` turns a recorded run into a
scenario, by the fits of ``fit``.
"""
