"""Run a command that dies with its parent: ``python -I -S die_with_parent.py PARENT COMMAND …``.

A launcher that is killed with SIGKILL cannot clean up, so the kernel has to: prctl's
PR_SET_PDEATHSIG sends a signal when the parent ends, and survives exec. Setting it here, and not
between fork and exec of the launcher, keeps Python code out of a forked copy of a process that has
threads. The signal is SIGKILL: nobody would be left to insist if SIGTERM did not help.

It is run as a file, not as a module, so that it starts in 10 ms and imports nothing else.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was told
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
