"""What this machine can do for an emulated network: tried, not guessed from versions.

Each probe makes what it asks for and removes it again. A kernel's configuration says less: a module
may be missing, and a container may lack the capability. Every probe returns what was found and, if
it is not usable, what is missing and how to get it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import resource
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from edgewise.extras import install_command

TUN = "/dev/net/tun"
TUNSETIFF = 0x400454CA  # <linux/if_tun.h>
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
ROOT = 0xFFFFFFFF  # TC_H_ROOT
FILES_WANTED = 4096
"""Two descriptors per relayed connection; 64 clients on ten servers need 1,300."""
LATE_MS = 1.0
"""A machine whose timer fires later than this, in the median, cannot keep the relay's promise."""


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``edgewise doctor``."""

    name: str
    ok: bool
    found: str
    """What was tried and seen."""
    needs: str = ""
    """What is missing and how to get it; empty if it is there."""


def network() -> list[Capability]:
    """The emulator's own: relay, namespaces, qdiscs, TUN, timers, descriptors, CPU pinning."""
    relay = relay_runs()
    spaces = namespaces()
    return [
        relay,
        spaces,
        qdisc("tbf", spaces),
        qdisc("netem", spaces),
        tun(spaces),
        timers(),
        descriptors(),
        pinning(),
    ]


def relay_runs() -> Capability:
    """Whether ``edgewise.network.relay.relay`` can be imported and has its timerfd."""
    missing = [m for m in ("aiohttp", "uvloop") if importlib.util.find_spec(m) is None]
    if missing:
        return Capability(
            name="relay",
            ok=False,
            found=f"no {', '.join(missing)}",
            needs=install_command("live"),
        )
    if not sys.platform.startswith("linux"):
        return Capability(
            name="relay", ok=False, found=sys.platform, needs="Linux: the relay's timers are its"
        )
    return Capability(name="relay", ok=True, found="the default backend, without privileges")


def namespaces() -> Capability:
    """Whether a network namespace with a veth pair can be made."""
    name = "network namespaces"
    lacks = _pyroute2()
    if lacks is not None:
        return msgspec.structs.replace(lacks, name=name)
    if shutil.which("nsenter") is None:
        return Capability(
            name=name, ok=False, found="no nsenter", needs="apt-get install util-linux"
        )
    with _attempt() as tried:
        with _space():
            pass
        return Capability(name=name, ok=True, found="made one with a veth pair")
    needs = "root (CAP_SYS_ADMIN and CAP_NET_ADMIN)" if os.geteuid() else "a kernel with net_ns"
    return Capability(name=name, ok=False, found=tried[0], needs=needs)


def qdisc(kind: str, spaces: Capability) -> Capability:
    """Whether the kernel has a queueing discipline, tried on a veth device."""
    name = f"tc {kind}"
    if not spaces.ok:
        return Capability(
            name=name, ok=False, found="not tried", needs=f"{spaces.name}: {spaces.needs}"
        )
    parameters: dict[str, Any] = {"delay": 1000}
    if kind == "tbf":
        parameters = {"rate": 1_000_000, "burst": 16384, "latency": "50ms"}
    with _attempt() as tried:
        with _space() as (made, space, device):
            made.tc("add", kind, space, device, 0x10000, parent=ROOT, **parameters)
        return Capability(name=name, ok=True, found="added to a veth device")
    what = "delay, jitter and loss" if kind == "netem" else "rates"
    return Capability(
        name=name,
        ok=False,
        found=f"this kernel refuses it: {tried[0]}",
        needs=f"modprobe sch_{kind}, or a kernel built with it; without it the tc backend "
        f"plays no {what} (relay and tun do)",
    )


def tun(spaces: Capability) -> Capability:
    """Whether a TUN device can be made."""
    try:
        handle = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return Capability(
            name="tun device",
            ok=False,
            found=f"{TUN}: {error.strerror}",
            needs="modprobe tun, and root; in a container --device /dev/net/tun",
        )
    try:
        fcntl.ioctl(handle, TUNSETIFF, struct.pack("16sH22x", b"ewprobe%d", IFF_TUN | IFF_NO_PI))
    except OSError as error:
        return Capability(
            name="tun device",
            ok=False,
            found=f"cannot be made: {error.strerror}",
            needs="root (CAP_NET_ADMIN)",
        )
    finally:
        os.close(handle)
    if not spaces.ok:
        return Capability(
            name="tun device",
            ok=False,
            found="can be made",
            needs=f"{spaces.name}: {spaces.needs}",
        )
    return Capability(name="tun device", ok=True, found="made one")


def timers() -> Capability:
    """How late a timerfd and an event loop's own timer fire, medians of a hundred millisecond."""
    try:
        from edgewise.network.relay.timers import Timers
    except ImportError as error:  # pragma: no cover - numba and numpy are the core's own
        return Capability(name="timers", ok=False, found=str(error), needs="pip install edgewise")
    fine, coarse = asyncio.run(_lateness(Timers))
    way = "os.timerfd_create" if sys.version_info >= (3, 13) else "timerfd through the C library"
    found = (
        f"{way}: {fine:.2f} ms late in the median, the loop's own {coarse:.2f} ms, "
        f"clock {time.get_clock_info('monotonic').resolution * 1e9:.0f} ns"
    )
    late = fine > LATE_MS
    return Capability(
        name="timers",
        ok=not late,
        found=found,
        needs="a less busy machine, or realtime: true in the relay's configuration" if late else "",
    )


async def _lateness(make: Callable[[asyncio.AbstractEventLoop], Any]) -> tuple[float, float]:
    """Medians of how late, ms: our timers, then the loop's."""
    loop = asyncio.get_running_loop()
    clock = make(loop)
    fine: list[float] = []
    coarse: list[float] = []
    try:
        for _ in range(40):
            fired: asyncio.Future[float] = loop.create_future()
            due = time.monotonic() + 0.00137
            clock.at(due, fired.set_result)
            fine.append(await fired - due)
            due = time.monotonic() + 0.00137
            await asyncio.sleep(0.00137)
            coarse.append(time.monotonic() - due)
    finally:
        clock.close()
    return 1e3 * sorted(fine)[20], 1e3 * sorted(coarse)[20]


def descriptors() -> Capability:
    """The limit on open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ok = soft == resource.RLIM_INFINITY or soft >= FILES_WANTED
    needs = "" if ok else f"ulimit -n {FILES_WANTED}; each relayed connection takes two"
    return Capability(name="file descriptors", ok=ok, found=f"{soft} of {hard}", needs=needs)


def pinning() -> Capability:
    """Cores, and whether a process may choose its own."""
    mine = os.sched_getaffinity(0)
    found = f"{len(mine)} of {os.cpu_count()} cores are ours"
    try:
        os.sched_setaffinity(0, mine)
    except OSError as error:
        return Capability(
            name="CPU pinning",
            ok=False,
            found=f"{found}; {error.strerror}",
            needs="a container that allows sched_setaffinity",
        )
    needs = "" if len(mine) > 1 else "a second core: servers and network share one"
    return Capability(name="CPU pinning", ok=len(mine) > 1, found=found, needs=needs)


def _pyroute2() -> Capability | None:
    if importlib.util.find_spec("pyroute2") is not None:
        return None
    return Capability(
        name="", ok=False, found="no pyroute2", needs=f"{install_command('netns')}, and root"
    )


@contextlib.contextmanager
def _attempt() -> Iterator[list[str]]:
    """Turns an error of the kernel into its text, in the list that it gives; ends the block."""
    said: list[str] = []
    try:
        yield said
    except Exception as error:  # NetlinkError is no OSError, and its text is "(2, 'No such …')"
        reason = error.args[-1] if error.args else repr(error)
        said.append(str(reason).partition(";")[0])


@contextlib.contextmanager
def _space() -> Iterator[tuple[Any, str, int]]:
    """A network namespace with a veth device in it, for as long as the block lasts."""
    from edgewise.network.kernel.namespaces import Spaces

    with Spaces() as spaces:
        a = spaces.add("probe")
        b = spaces.add("other")
        spaces.veth((a, "probe0"), (b, "probe1"))
        yield spaces, a, spaces.index(a, "probe0")
