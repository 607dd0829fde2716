"""How true the simulator is: it and real processes on the same requests.

`live_comparison` runs both and `comparison` compares them, from their files; `comparison_report`
shows the result. `profiling` measures services on this machine. `calibration` turns a recorded run
into a scenario, with the fits of `fitting`; `validation` compares that scenario with another run.
"""
