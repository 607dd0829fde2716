"""Check what this machine supports of an emulated network, by trying it.

Each probe makes the thing that it is about and removes it again. A kernel's configuration says
less: a module may be missing, and a container may lack the capability.
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


class Capability(msgspec.Struct, frozen=True):
    """One line of ``edgewise doctor``."""

    name: str
    found: str
    """The result of the check."""
    needs: str = ""
    """The missing part and how to get it; empty if nothing is missing."""

    @property
    def ok(self) -> bool:
        """Whether nothing is missing."""
        return not self.needs


def network_capabilities() -> list[Capability]:
    """All that an emulated network may need; the relay, which needs least, comes first."""
    namespaces = network_namespaces()
    return [
        relay(),
        namespaces,
        qdisc("tbf", namespaces),
        qdisc("netem", namespaces),
        tun(namespaces),
        timers(),
        descriptors(),
        pinning(),
    ]


def relay() -> Capability:
    """Whether the relay can be imported and has its timerfd."""
    missing = [m for m in ("aiohttp", "uvloop") if importlib.util.find_spec(m) is None]
    if missing:
        return Capability("relay", f"no {', '.join(missing)}", install_command("live"))
    if not sys.platform.startswith("linux"):
        return Capability("relay", sys.platform, "Linux: it has the relay's timers")
    return Capability("relay", "the default backend, without privileges")


def network_namespaces() -> Capability:
    """Whether a network namespace with a veth pair can be made."""
    name = "network namespaces"
    if importlib.util.find_spec("pyroute2") is None:
        return Capability(name, "no pyroute2", f"{install_command('netns')}, and root")
    if shutil.which("nsenter") is None:
        return Capability(name, "no nsenter", "apt-get install util-linux")
    with _errors_as_text() as errors:
        with _namespace():
            pass
        return Capability(name, "made one with a veth pair")
    needs = "root (CAP_SYS_ADMIN and CAP_NET_ADMIN)" if os.geteuid() else "a kernel with net_ns"
    return Capability(name, errors[0], needs)


def qdisc(kind: str, namespaces: Capability) -> Capability:
    """Whether the kernel has a queueing discipline, tried on a veth device."""
    name = f"tc {kind}"
    if not namespaces.ok:
        return Capability(name, "not tried", f"{namespaces.name}: {namespaces.needs}")
    parameters: dict[str, Any] = {"delay": 1000}
    if kind == "tbf":
        parameters = {"rate": 1_000_000, "burst": 16384, "latency": "50ms"}
    with _errors_as_text() as errors:
        with _namespace() as (made, namespace, device):
            made.tc("add", kind, namespace, device, 0x10000, parent=ROOT, **parameters)
        return Capability(name, "added to a veth device")
    lost = "delay, jitter and loss" if kind == "netem" else "rates"
    return Capability(
        name,
        f"this kernel refuses it: {errors[0]}",
        f"modprobe sch_{kind}, or a kernel built with it; without it the tc backend has no {lost} "
        "(relay and tun do)",
    )


def tun(namespaces: Capability) -> Capability:
    """Whether a TUN device can be made."""
    name = "tun device"
    try:
        handle = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        needs = "modprobe tun, and root; in a container --device /dev/net/tun"
        return Capability(name, f"{TUN}: {error.strerror}", needs)
    try:
        fcntl.ioctl(handle, TUNSETIFF, struct.pack("16sH22x", b"ewprobe%d", IFF_TUN | IFF_NO_PI))
    except OSError as error:
        return Capability(name, f"cannot be made: {error.strerror}", "root (CAP_NET_ADMIN)")
    finally:
        os.close(handle)
    if not namespaces.ok:
        return Capability(name, "can be made", f"{namespaces.name}: {namespaces.needs}")
    return Capability(name, "made one")


def timers() -> Capability:
    """How late a timerfd and an event loop's own timer fire, medians of forty, ms."""
    from edgewise.network.relay.timers import Timers

    fine, coarse = asyncio.run(_lateness(Timers))
    way = "os.timerfd_create" if sys.version_info >= (3, 13) else "timerfd through the C library"
    found = (
        f"{way}: {fine:.2f} ms late in the median, the loop's own {coarse:.2f} ms, "
        f"clock {time.get_clock_info('monotonic').resolution * 1e9:.0f} ns"
    )
    needs = "a less busy machine, or realtime: true in the relay's configuration"
    return Capability("timers", found, needs if fine > LATE_MS else "")


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
    enough = soft == resource.RLIM_INFINITY or soft >= FILES_WANTED
    needs = f"ulimit -n {FILES_WANTED}; each relayed connection takes two"
    return Capability("file descriptors", f"{soft} of {hard}", "" if enough else needs)


def pinning() -> Capability:
    """The number of cores, and whether a process may choose its own."""
    usable = os.sched_getaffinity(0)
    found = f"{len(usable)} of {os.cpu_count()} cores are ours"
    try:
        os.sched_setaffinity(0, usable)
    except OSError as error:
        needs = "a container that allows sched_setaffinity"
        return Capability("CPU pinning", f"{found}; {error.strerror}", needs)
    needs = "" if len(usable) > 1 else "a second core: servers and network share one"
    return Capability("CPU pinning", found, needs)


@contextlib.contextmanager
def _errors_as_text() -> Iterator[list[str]]:
    """Turn an error in the block into its text, in the list that is yielded."""
    errors: list[str] = []
    try:
        yield errors
    except Exception as error:  # NetlinkError is no OSError, and its text is "(2, 'No such …')"
        reason = error.args[-1] if error.args else repr(error)
        errors.append(str(reason).partition(";")[0])


@contextlib.contextmanager
def _namespace() -> Iterator[tuple[Any, str, int]]:
    """A network namespace with a veth device in it, for as long as the block lasts."""
    from edgewise.network.kernel.namespaces import Namespaces

    with Namespaces() as namespaces:
        a = namespaces.add("probe")
        b = namespaces.add("other")
        namespaces.veth((a, "probe0"), (b, "probe1"))
        yield namespaces, a, namespaces.index(a, "probe0")
