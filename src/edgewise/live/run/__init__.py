"""The launcher: starts, watches and stops the processes of a run, and evaluates the run."""
