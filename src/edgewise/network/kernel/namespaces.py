"""Network namespaces and the devices in them (extra ``netns``: pyroute2).

A namespace is called ``ew-PID-NAME`` after the process that made it. If that process is killed, the
next one recognises what it left, and `remove_leftovers` removes it. Devices disappear with their
namespace, and so does the other end of a veth pair.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import ipaddress
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

from edgewise.errors import BadInput, MissingExtra

try:
    from pyroute2 import IPRoute, netns
    from pyroute2.netlink.exceptions import NetlinkError
except ImportError as e:
    raise MissingExtra("netns", e.name or "pyroute2") from e

NETLINK_ERRORS = (NetlinkError, OSError)
CLONE_NEWNET = 0x40000000  # <linux/sched.h>
HOST = ""
"""Stands for the namespace that this process is in."""
PREFIX = "ew"
_OURS = re.compile(rf"^{PREFIX}-(\d+)-.+$")
_OUR_DEVICE = re.compile(rf"^{PREFIX}(\d+)[a-z]\d*$")


def remove_leftovers() -> list[str]:
    """Remove the namespaces and devices of processes that are gone; returns their names."""
    gone = []
    for name in netns.listnetns():
        match = _OURS.match(name)
        if match is None or _alive(int(match[1])):
            continue
        with contextlib.suppress(OSError):  # another launcher was quicker
            netns.remove(name)
            gone.append(name)
    with Namespaces() as namespaces:
        for device in namespaces.devices():
            match = _OUR_DEVICE.match(device)
            if match is not None and not _alive(int(match[1])):
                namespaces.delete(device)
                gone.append(device)
    return gone


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


_libc = ctypes.CDLL(None, use_errno=True)
Method = TypeVar("Method", bound=Callable[..., Any])


def _on_worker(method: Method) -> Method:
    """Run a method on the thread of its `Namespaces`."""

    @functools.wraps(method)
    def wrapped(self: Namespaces, *args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() in self._threads:
            return method(self, *args, **kwargs)
        return self._worker.submit(method, self, *args, **kwargs).result()

    return cast(Method, wrapped)


class Namespaces:
    """The namespaces of this process. Use as ``with Namespaces() as namespaces``: leaving the block
    removes them.

    pyroute2's sockets run an event loop of their own, which cannot share a thread with another one.
    So they live on a thread of their own, and every method waits for it: a call takes about a
    millisecond. That thread also enters the namespaces. (pyroute2's ``NetNS`` and ``create`` fork
    and then kill the child with SIGTERM. What that writes to the shared wake-up pipe of an event
    loop looks to the loop like a SIGTERM for itself.)

    Every method raises BadInput if the kernel refuses.
    """

    def __init__(self) -> None:
        self._threads: set[threading.Thread] = set()
        self._worker = ThreadPoolExecutor(
            1,
            thread_name_prefix="netlink",
            initializer=lambda: self._threads.add(threading.current_thread()),
        )
        self._handles: dict[str, Any] = {}
        self._own: set[str] = set()
        self._veths: list[str] = []
        self._open_host()

    def __enter__(self) -> Namespaces:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @_on_worker
    def _open_host(self) -> None:
        self._handles[HOST] = IPRoute()

    def close(self) -> None:
        """Remove everything. Calling it again does nothing."""
        if self._handles:
            self._remove()
        self._worker.shutdown()

    @_on_worker
    def _remove(self) -> None:
        # A removed namespace stays alive until the connections in it have timed out, and so does
        # the host's end of its veth pairs. So those are removed first.
        for device in self._veths:
            self.delete(device)
        for name, handle in self._handles.items():
            handle.close()
            if name in self._own:
                with contextlib.suppress(OSError):
                    netns.remove(name)
        self._handles.clear()

    @_on_worker
    def add(self, name: str) -> str:
        """Make a namespace and set its loopback up. Returns its full name."""
        full = f"{PREFIX}-{os.getpid()}-{name}"
        with _refused(f"network namespace {full}"), self._elsewhere():
            if _libc.unshare(CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            # /proc/self would be the process's first thread, which is still in its old namespace.
            netns.attach(full, f"{os.getpid()}/task/{threading.get_native_id()}")
            self._own.add(full)
            self._handles[full] = IPRoute()
        self.up(full, "lo")
        return full

    @_on_worker
    def open(self, namespace: str) -> None:
        """Open a namespace that another process made, and that this one does not remove."""
        if namespace in self._handles:
            return
        with _refused(f"network namespace {namespace!r}"), self._elsewhere():
            netns.setns(namespace, flags=0, fork=False)
            self._handles[namespace] = IPRoute()

    @_on_worker
    def socket(self, namespace: str) -> socket.socket:
        """A UDP socket in a namespace; it stays there whichever thread uses it."""
        with _refused(f"network namespace {namespace!r}"), self._elsewhere():
            if namespace != HOST:
                netns.setns(namespace, flags=0, fork=False)
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.setblocking(False)
            return made

    @contextlib.contextmanager
    def _elsewhere(self) -> Iterator[None]:
        """Return the worker's thread to its namespace after a block that enters another one."""
        home = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
        try:
            yield
        finally:
            netns.setns(home)
            os.close(home)

    @_on_worker
    def move(self, device: str, namespace: str, name: str) -> None:
        """Move a device of the host into a namespace, under another name."""
        with _refused(f"device {device}"):
            index = self.index(HOST, device)
            self._handles[HOST].link("set", index=index, ifname=device, net_ns_fd=namespace)
            inside = self._handles[namespace]
            inside.link("set", index=self.index(namespace, device), ifname=name)

    @_on_worker
    def single_packets(self, namespace: str, index: int) -> None:
        """Make a device send packets of its own size, not bundles of up to 64 KiB that a network
        card would split."""
        with _refused("gso_max_segs"):
            self._handles[namespace].link("set", index=index, gso_max_segs=1)

    @_on_worker
    def tc(
        self, verb: str, kind: str, namespace: str, index: int, handle: int, **more: Any
    ) -> None:
        """``tc qdisc VERB`` for a device. The parameters are pyroute2's, rates in bytes/s."""
        with _refused(f"tc {kind}"):
            self._handles[namespace].tc(verb, kind, index, handle, **more)

    @_on_worker
    def statistics(self, namespace: str, index: int, handle: int) -> dict[str, int]:
        """The ``bytes``, ``backlog`` and ``drops`` of a qdisc; empty if there is no such qdisc."""
        for message in self._handles[namespace].get_qdiscs(index=index):
            if message["handle"] != handle:
                continue
            nested = message.get_attr("TCA_STATS2")
            counters: dict[str, int] = {}
            for each in ("TCA_STATS_BASIC", "TCA_STATS_QUEUE") if nested else ():
                values = nested.get_attr(each) or {}
                names = ("bytes", "backlog", "drops")
                counters |= {name: int(values[name]) for name in names if name in values}
            return counters
        return {}

    @_on_worker
    def free_block(self) -> ipaddress.IPv4Network:
        """A /24 of 198.18.0.0/16 that no device of this machine uses.

        198.18.0.0/15 is reserved for benchmarks (RFC 2544), so no real network has it.
        """
        taken = []
        for each in self._handles[HOST].get_addr(family=socket.AF_INET):
            address = each.get_attr("IFA_ADDRESS")
            if address is not None:
                taken.append(ipaddress.IPv4Interface(f"{address}/{each['prefixlen']}").network)
        blocks = list(ipaddress.IPv4Network("198.18.0.0/16").subnets(new_prefix=24))
        # Two launchers that start at the same time rarely choose the same block.
        first = os.getpid() % len(blocks)
        for block in blocks[first:] + blocks[:first]:
            if not any(block.overlaps(each) for each in taken):
                return block
        raise BadInput("198.18.0.0/16: no part of it is free for an emulated network")

    @_on_worker
    def index(self, namespace: str, device: str) -> int:
        """The number of a device."""
        indices = self._handles[namespace].link_lookup(ifname=device)
        if not indices:
            raise BadInput(f"there is no device {device} in {namespace or 'the host'}")
        return int(indices[0])

    @_on_worker
    def veth(self, a: tuple[str, str], b: tuple[str, str]) -> None:
        """Make a pair of connected devices, each given as (namespace, name), and set both up."""
        with _refused(f"veth {a[1]} - {b[1]}"):
            if b[0] == HOST:  # the kernel has no name for it
                a, b = b, a
            if a[0] == HOST:
                self._veths.append(a[1])
            peer: dict[str, str] = {"ifname": b[1]}
            if b[0] != HOST:
                peer["net_ns_fd"] = b[0]
            # The first device stays in the namespace where it is made; the kernel moves the peer.
            self._handles[a[0]].link("add", ifname=a[1], kind="veth", peer=peer)
        for namespace, device in (a, b):
            self.up(namespace, device)

    @_on_worker
    def devices(self) -> list[str]:
        """The names of the host's devices."""
        return [str(each.get_attr("IFLA_IFNAME")) for each in self._handles[HOST].get_links()]

    @_on_worker
    def delete(self, device: str) -> None:
        """Remove a device of the host with its other end; it need not exist."""
        with contextlib.suppress(*NETLINK_ERRORS, BadInput):
            self._handles[HOST].link("del", index=self.index(HOST, device))

    @_on_worker
    def bridge(self, namespace: str, name: str, ports: list[str]) -> None:
        """Connect devices of one namespace by a bridge."""
        with _refused(f"bridge {name}"):
            handle = self._handles[namespace]
            handle.link("add", ifname=name, kind="bridge")
            master = self.index(namespace, name)
            for port in ports:
                handle.link("set", index=self.index(namespace, port), master=master)
        self.up(namespace, name)

    @_on_worker
    def up(self, namespace: str, device: str) -> None:
        """Set a device up."""
        with _refused(f"device {device}"):
            self._handles[namespace].link("set", index=self.index(namespace, device), state="up")

    @_on_worker
    def address(self, namespace: str, device: str, address: str, prefix: int) -> None:
        """Give a device an address."""
        with _refused(f"address {address}"):
            self._handles[namespace].addr(
                "add", index=self.index(namespace, device), address=address, prefixlen=prefix
            )

    @_on_worker
    def route(self, namespace: str, target: str, *, device: str, via: str | None = None) -> None:
        """Route packets for `target` (``a.b.c.d/n``) over a device, by the gateway `via` if any."""
        with _refused(f"route to {target}"):
            gateway = {} if via is None else {"gateway": via}
            index = self.index(namespace, device)
            self._handles[namespace].route("add", dst=target, oif=index, **gateway)


@contextlib.contextmanager
def _refused(action: str) -> Iterator[None]:
    try:
        yield
    except NETLINK_ERRORS as error:
        reason = error.args[-1] if error.args else repr(error)
        raise BadInput(f"{action}: {reason}; `edgewise doctor`") from None
