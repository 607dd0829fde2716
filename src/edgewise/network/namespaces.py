"""Network namespaces and what is in them, made and removed again (extra ``netns``: pyroute2).

Every namespace is called ``ew-PID-NAME``, PID being the process that made it. So whatever is left
by a process that was killed can be told from what is in use, and :func:`sweep` removes it: devices
go with their namespace, and so does the other end of a veth pair.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from typing import Any

from edgewise.errors import BadInput, MissingExtra

try:
    from pyroute2 import IPRoute, NetNS, netns
    from pyroute2.netlink.exceptions import NetlinkError
except ImportError as e:
    raise MissingExtra("netns", e.name or "pyroute2") from e

HOST = ""
"""In place of a namespace: the one that we are in."""
PREFIX = "ew"
_OURS = re.compile(rf"^{PREFIX}-(\d+)-.+$")


def sweep() -> list[str]:
    """Remove the namespaces of processes that are gone; returns their names."""
    gone = []
    for name in netns.listnetns():
        found = _OURS.match(name)
        if found is None or _alive(int(found[1])):
            continue
        with contextlib.suppress(OSError):  # another launcher was quicker
            netns.remove(name)
            gone.append(name)
    return gone


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Spaces:
    """Namespaces of this process, to be used as ``with Spaces() as spaces``; all gone on leaving.

    Raises BadInput, from every method, for what the kernel refuses.
    """

    def __init__(self) -> None:
        self._host = IPRoute()
        self._handles: dict[str, Any] = {HOST: self._host}

    def __enter__(self) -> Spaces:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove everything; again does nothing."""
        for name, handle in self._handles.items():
            handle.close()
            if name != HOST:
                with contextlib.suppress(OSError):
                    netns.remove(name)
        self._handles.clear()

    def add(self, name: str) -> str:
        """A namespace with its loopback up; returns what it is called in full."""
        full = f"{PREFIX}-{os.getpid()}-{name}"
        with _refused(f"network namespace {full}"):
            netns.create(full)
            self._handles[full] = handle = NetNS(full)
            handle.link("set", index=1, state="up")
        return full

    def handle(self, space: str) -> Any:
        """pyroute2's own object for a namespace."""
        return self._handles[space]

    def index(self, space: str, device: str) -> int:
        """A device's number."""
        found = self._handles[space].link_lookup(ifname=device)
        if not found:
            raise BadInput(f"there is no device {device} in {space or 'the host'}")
        return int(found[0])

    def veth(self, a: tuple[str, str], b: tuple[str, str]) -> None:
        """A pair of devices, each as (namespace, name), both up."""
        with _refused(f"veth {a[1]} - {b[1]}"):
            peer: dict[str, str] = {"ifname": b[1]}
            if b[0] != HOST:
                peer["net_ns_fd"] = b[0]
            # Made where `a` is to be: the kernel moves only the peer.
            self._handles[a[0]].link("add", ifname=a[1], kind="veth", peer=peer)
        for space, device in (a, b):
            self.up(space, device)

    def bridge(self, space: str, name: str, ports: list[str]) -> None:
        """A switch of devices that are in the same namespace."""
        with _refused(f"bridge {name}"):
            handle = self._handles[space]
            handle.link("add", ifname=name, kind="bridge")
            master = self.index(space, name)
            for port in ports:
                handle.link("set", index=self.index(space, port), master=master)
        self.up(space, name)

    def up(self, space: str, device: str) -> None:
        """Set a device up."""
        with _refused(f"device {device}"):
            self._handles[space].link("set", index=self.index(space, device), state="up")

    def address(self, space: str, device: str, address: str, prefix: int) -> None:
        """Give a device an address."""
        with _refused(f"address {address}"):
            self._handles[space].addr(
                "add", index=self.index(space, device), address=address, prefixlen=prefix
            )

    def route(self, space: str, target: str, *, device: str, via: str | None = None) -> None:
        """Reach ``target`` (``a.b.c.d/n``) over a device, through ``via`` if it is further off."""
        with _refused(f"route to {target}"):
            more = {} if via is None else {"gateway": via}
            self._handles[space].route("add", dst=target, oif=self.index(space, device), **more)


@contextlib.contextmanager
def _refused(what: str) -> Any:
    try:
        yield
    except (NetlinkError, OSError) as error:
        reason = error.args[-1] if error.args else repr(error)
        raise BadInput(f"{what}: the kernel refuses it: {reason}; `edgewise doctor`") from None


def free_block() -> ipaddress.IPv4Network:
    """A /24 of 198.18.0.0/16 that no device of this machine is in.

    198.18.0.0/15 is set aside for benchmarks (RFC 2544), so it is no network that anybody is in.

    Raises BadInput if there is none.
    """
    with IPRoute() as host:
        taken = [
            ipaddress.ip_interface(f"{attributes['IFA_ADDRESS']}/{each['prefixlen']}").network
            for each in host.get_addr(family=2)
            if "IFA_ADDRESS" in (attributes := dict(each["attrs"]))
        ]
    blocks = list(ipaddress.ip_network("198.18.0.0/16").subnets(new_prefix=24))
    # Two launchers that start together rarely choose the same.
    first = os.getpid() % len(blocks)
    for block in blocks[first:] + blocks[:first]:
        if isinstance(block, ipaddress.IPv4Network) and not any(
            block.overlaps(each) for each in taken if each.version == 4 and each.prefixlen > 0
        ):
            return block
    raise BadInput("198.18.0.0/16: no part of it is free for an emulated network")
