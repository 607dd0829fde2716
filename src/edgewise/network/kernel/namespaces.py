"""Network namespaces and what is in them, made and removed again (extra ``netns``: pyroute2).

Every namespace is called ``ew-PID-NAME``, PID being the process that made it. So whatever is left
by a process that was killed can be told from what is in use, and :func:`sweep` removes it: devices
go with their namespace, and so does the other end of a veth pair.
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
"""In place of a namespace: the one that we are in."""
PREFIX = "ew"
_OURS = re.compile(rf"^{PREFIX}-(\d+)-.+$")
_OUR_DEVICE = re.compile(rf"^{PREFIX}(\d+)[a-z]\d*$")


def sweep() -> list[str]:
    """Remove the namespaces and devices of processes that are gone; returns their names."""
    gone = []
    for name in netns.listnetns():
        found = _OURS.match(name)
        if found is None or _alive(int(found[1])):
            continue
        with contextlib.suppress(OSError):  # another launcher was quicker
            netns.remove(name)
            gone.append(name)
    with Spaces() as spaces:
        for device in spaces.devices():
            found = _OUR_DEVICE.match(device)
            if found is not None and not _alive(int(found[1])):
                spaces.delete(device)
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
    """Run a method on the thread of its Spaces."""

    @functools.wraps(method)
    def wrapped(self: Spaces, *args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() in self._threads:
            return method(self, *args, **kwargs)
        return self._worker.submit(method, self, *args, **kwargs).result()

    return cast(Method, wrapped)


class Spaces:
    """Namespaces of this process, to be used as ``with Spaces() as spaces``; all gone on leaving.

    pyroute2's sockets run an event loop of their own, which cannot be where another one runs. So
    they live on a thread, and every method waits for it: a call takes about a millisecond. That
    thread also enters the namespaces. (pyroute2's own ``NetNS`` and ``create`` fork and then kill
    the child with SIGTERM, and what that writes to the shared wake-up pipe of an event loop looks
    to it like a SIGTERM of its own.)

    Raises BadInput, from every method, for what the kernel refuses.
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

    def __enter__(self) -> Spaces:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @_on_worker
    def _open_host(self) -> None:
        self._handles[HOST] = IPRoute()

    def close(self) -> None:
        """Remove everything; again does nothing."""
        if self._handles:
            self._remove()
        self._worker.shutdown()

    @_on_worker
    def _remove(self) -> None:
        # A namespace that is removed lives on while a connection in it has not timed out, and with
        # it the host's end of its veth pairs. So those go first.
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
        """A namespace with its loopback up; returns what it is called in full."""
        full = f"{PREFIX}-{os.getpid()}-{name}"
        with _refused(f"network namespace {full}"), self._elsewhere():
            if _libc.unshare(CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            # /proc/self would be the process's first thread, which has stayed where it was.
            netns.attach(full, f"{os.getpid()}/task/{threading.get_native_id()}")
            self._own.add(full)
            self._handles[full] = IPRoute()
        self.up(full, "lo")
        return full

    @_on_worker
    def open(self, space: str) -> None:
        """Have a handle of a namespace, which stays its maker's."""
        if space in self._handles:
            return
        with _refused(f"network namespace {space!r}"), self._elsewhere():
            netns.setns(space, flags=0, fork=False)
            self._handles[space] = IPRoute()

    @_on_worker
    def socket(self, space: str) -> socket.socket:
        """A UDP socket that stays in a namespace, whoever uses it."""
        with _refused(f"network namespace {space!r}"), self._elsewhere():
            if space != HOST:
                netns.setns(space, flags=0, fork=False)
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.setblocking(False)
            return made

    @contextlib.contextmanager
    def _elsewhere(self) -> Iterator[None]:
        """For a block that takes the worker's thread into another namespace: back again after."""
        home = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
        try:
            yield
        finally:
            netns.setns(home)
            os.close(home)

    @_on_worker
    def move(self, device: str, space: str, name: str) -> None:
        """Put a device of the host into a namespace, under another name."""
        with _refused(f"device {device}"):
            index = self.index(HOST, device)
            self._handles[HOST].link("set", index=index, ifname=device, net_ns_fd=space)
            inside = self._handles[space]
            inside.link("set", index=self.index(space, device), ifname=name)

    @_on_worker
    def single_packets(self, space: str, index: int) -> None:
        """Have what leaves a device come in packets of its own size, not in bundles of up to 64
        KiB that the card would have split."""
        with _refused("gso_max_segs"):
            self._handles[space].link("set", index=index, gso_max_segs=1)

    @_on_worker
    def tc(self, verb: str, kind: str, space: str, index: int, handle: int, **more: Any) -> None:
        """``tc qdisc VERB`` for a device; parameters as pyroute2 has them. Rates in bytes/s."""
        with _refused(f"tc {kind}"):
            self._handles[space].tc(verb, kind, index, handle, **more)

    @_on_worker
    def statistics(self, space: str, index: int, handle: int) -> dict[str, int]:
        """What a qdisc has counted: ``bytes``, ``backlog``, ``drops``; empty if it is not there."""
        for message in self._handles[space].get_qdiscs(index=index):
            if message["handle"] != handle:
                continue
            nested = message.get_attr("TCA_STATS2")
            found: dict[str, int] = {}
            for each in ("TCA_STATS_BASIC", "TCA_STATS_QUEUE") if nested else ():
                values = nested.get_attr(each) or {}
                found |= {k: int(values[k]) for k in ("bytes", "backlog", "drops") if k in values}
            return found
        return {}

    @_on_worker
    def free_block(self) -> ipaddress.IPv4Network:
        """A /24 of 198.18.0.0/16 that no device of this machine is in.

        198.18.0.0/15 is set aside for benchmarks (RFC 2544), so it is no network of anybody's.
        """
        taken = []
        for each in self._handles[HOST].get_addr(family=socket.AF_INET):
            address = each.get_attr("IFA_ADDRESS")
            if address is not None:
                taken.append(ipaddress.IPv4Interface(f"{address}/{each['prefixlen']}").network)
        blocks = list(ipaddress.IPv4Network("198.18.0.0/16").subnets(new_prefix=24))
        # Two launchers that start together rarely choose the same.
        first = os.getpid() % len(blocks)
        for block in blocks[first:] + blocks[:first]:
            if not any(block.overlaps(each) for each in taken):
                return block
        raise BadInput("198.18.0.0/16: no part of it is free for an emulated network")

    @_on_worker
    def index(self, space: str, device: str) -> int:
        """A device's number."""
        found = self._handles[space].link_lookup(ifname=device)
        if not found:
            raise BadInput(f"there is no device {device} in {space or 'the host'}")
        return int(found[0])

    @_on_worker
    def veth(self, a: tuple[str, str], b: tuple[str, str]) -> None:
        """A pair of devices, each as (namespace, name), both up."""
        with _refused(f"veth {a[1]} - {b[1]}"):
            if b[0] == HOST:  # which has no name to give to the kernel
                a, b = b, a
            if a[0] == HOST:
                self._veths.append(a[1])
            peer: dict[str, str] = {"ifname": b[1]}
            if b[0] != HOST:
                peer["net_ns_fd"] = b[0]
            # Made where `a` is to be: the kernel moves only the peer.
            self._handles[a[0]].link("add", ifname=a[1], kind="veth", peer=peer)
        for space, device in (a, b):
            self.up(space, device)

    @_on_worker
    def devices(self) -> list[str]:
        """The host's, by name."""
        return [str(each.get_attr("IFLA_IFNAME")) for each in self._handles[HOST].get_links()]

    @_on_worker
    def delete(self, device: str) -> None:
        """Remove a device of the host, and the other end of it; one that is gone is fine."""
        with contextlib.suppress(*NETLINK_ERRORS, BadInput):
            self._handles[HOST].link("del", index=self.index(HOST, device))

    @_on_worker
    def bridge(self, space: str, name: str, ports: list[str]) -> None:
        """A switch of devices that are in the same namespace."""
        with _refused(f"bridge {name}"):
            handle = self._handles[space]
            handle.link("add", ifname=name, kind="bridge")
            master = self.index(space, name)
            for port in ports:
                handle.link("set", index=self.index(space, port), master=master)
        self.up(space, name)

    @_on_worker
    def up(self, space: str, device: str) -> None:
        """Set a device up."""
        with _refused(f"device {device}"):
            self._handles[space].link("set", index=self.index(space, device), state="up")

    @_on_worker
    def address(self, space: str, device: str, address: str, prefix: int) -> None:
        """Give a device an address."""
        with _refused(f"address {address}"):
            self._handles[space].addr(
                "add", index=self.index(space, device), address=address, prefixlen=prefix
            )

    @_on_worker
    def route(self, space: str, target: str, *, device: str, via: str | None = None) -> None:
        """Reach ``target`` (``a.b.c.d/n``) over a device, through ``via`` if it is further off."""
        with _refused(f"route to {target}"):
            more = {} if via is None else {"gateway": via}
            self._handles[space].route("add", dst=target, oif=self.index(space, device), **more)


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    try:
        yield
    except NETLINK_ERRORS as error:
        reason = error.args[-1] if error.args else repr(error)
        raise BadInput(f"{what}: {reason}; `edgewise doctor`") from None
