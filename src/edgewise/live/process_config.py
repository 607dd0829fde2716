"""The configuration files of the processes: one small YAML file each, beside the scenario.

The scenario says what the fleet is; these files say where its processes listen and where they find
each other. The launcher writes them; `docs/by-hand.md` shows how to write them by hand. The
emulator is switched on by nothing but the relays' addresses in these files.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from edgewise.decoding import pattern
from edgewise.documents import read_document
from edgewise.domain import Name, PolicyName
from edgewise.errors import ScenarioError
from edgewise.policy_names import absolute
from edgewise.scenario.files import refuse_code

Port = Annotated[int, Meta(ge=0, le=65535)]
Url = Annotated[str, pattern(r"^https?://[^\s/]+:\d{1,5}/?\Z", "a URL such as http://plaza:8101")]


class Listen(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a process listens."""

    host: str = "127.0.0.1"
    """Loopback by default, so that nothing is reachable from outside by accident."""
    port: Port = 0
    """0: any free port; the process prints which one."""


class ProcessConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields that all processes have."""

    scenario: str
    """The name of a preset, or a file relative to this one."""
    identity: str | None = None
    """Folder with this process's certificate (`security.identity`), relative to this file; None:
    nobody proves who they are. With it every URL begins with ``https``."""

    def urls(self) -> dict[str, str]:
        """The addresses of other processes, by field."""
        return {}


class ServerConfig(ProcessConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The further fields of a process that others connect to."""

    listen: Listen = Listen()
    trust_anyone_who_connects: bool = False
    """Without an identity, listen even where other machines can connect."""


Limit = Annotated[float, Meta(gt=0.0, le=86_400.0)]
"""s."""


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What clients may take of a node or a balancer. Each limit has a count in the metrics."""

    connections: Annotated[int, Meta(ge=1, le=2**20)] = 4096
    """Connections at a time. Further ones are answered with 503."""
    connections_per_client: Annotated[int, Meta(ge=1, le=2**20)] = 1024
    """Those of one address. An ingress with 1,000 requests/s of a second each has about as many."""
    header_bytes: Annotated[int, Meta(ge=256, le=2**20)] = 8190
    """bytes of a request line or a header; longer ones are answered with 431. nginx's default."""
    header_timeout: Limit = 10.0
    """s from the first byte of a request to the end of its headers; then 408."""
    idle_timeout: Limit = 75.0
    """s without a request after which a connection is closed. Nodes keep theirs for 60."""
    body_progress_timeout: Limit = 10.0
    """s without a byte of a body after which it counts as broken off; 408. An outage of a thin link
    takes seconds."""
    body_timeout: Limit = 60.0
    """s for a whole body; 408. A photo of 16 MiB takes 60 s at 2 Mbit/s."""
    request_timeout: Limit = 300.0
    """s from a request's headers to its answer, whatever its deadline; then 504."""
    upload_bytes: Annotated[int, Meta(ge=2**16, le=2**40)] = 256 * 2**20
    """bytes of all bodies that are still coming in. What comes beyond it is answered with 503."""


class NodeConfig(ServerConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The configuration of an edge server."""

    server: Name
    """The name of this server in the scenario."""
    balancer: Url | None = None
    """None: the node decides for itself."""
    peers: dict[Name, Url] = {}
    """Addresses of the other servers."""
    body_limit: Annotated[int, Meta(ge=1024, le=2**31)] = 16 * 2**20
    """bytes. A JPEG of 50 megapixels has about 16 MiB; a larger body is no photo to classify."""
    limits: Limits = Limits()

    def urls(self) -> dict[str, str]:
        balancer = {} if self.balancer is None else {"balancer": self.balancer}
        return balancer | {f"peers.{name}": url for name, url in self.peers.items()}


class BalancerConfig(ServerConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The configuration of the balancer."""

    policy: PolicyName | None = None
    """In place of the scenario's; a relative file of weights is looked for beside this file."""
    shadow: PolicyName | None = None
    """In place of the scenario's: a policy that also decides every request, for the record only."""
    out: str | None = None
    """Folder for decisions, reports and experience; None: nothing is recorded."""
    relays: tuple[Url, ...] = ()
    """Control interfaces of relays, used with ``network_state: emulator`` only."""

    def urls(self) -> dict[str, str]:
        return {f"relays[{i}]": url for i, url in enumerate(self.relays)}


class ClientConfig(ProcessConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The configuration of the client."""

    balancer: Url | None
    """None: metadata goes to the ingress only, and the ingress asks the balancer."""
    ingress: dict[Name, Url]
    """Addresses of the servers. A request goes to its own ingress, and if that gives no answer, to
    the others in this order."""
    failover: bool = True
    """Whether other ingresses are tried, after one that cannot be reached, breaks off before its
    answer, or is draining."""
    out: str | None = None
    """Folder for requests and outcomes; None: nothing is recorded."""

    def urls(self) -> dict[str, str]:
        balancer = {} if self.balancer is None else {"balancer": self.balancer}
        return balancer | {f"ingress.{name}": url for name, url in self.ingress.items()}


T = TypeVar("T", NodeConfig, BalancerConfig, ClientConfig)


def load_config(path: str | os.PathLike[str], kind: type[T], *, allow_code: bool = False) -> T:
    """Read one of the above. A relative scenario file is resolved against the config's folder.

    Raises ScenarioError naming the file, the field and what was expected; a policy that is Python
    code is refused unless `allow_code`.
    """
    file = Path(path)
    config = read_document(file, kind)
    beside = file.parent / config.scenario
    if beside.is_file():
        config = msgspec.structs.replace(config, scenario=str(beside))
    if config.identity is not None:
        config = msgspec.structs.replace(config, identity=str(file.parent / config.identity))
    scheme = "http" if config.identity is None else "https"
    for field, url in config.urls().items():
        if not url.startswith(f"{scheme}:"):
            why = "there is no `identity`" if config.identity is None else "there is an `identity`"
            raise ScenarioError(
                str(file), field, f"expected {scheme}://…, since {why}; got {url!r:.80}"
            )
    if isinstance(config, BalancerConfig):
        for key in ("policy", "shadow"):
            name = getattr(config, key)
            if name is not None:
                if not allow_code:
                    refuse_code(str(file), key, name)
                config = msgspec.structs.replace(
                    config, **{key: absolute(name, file.parent.absolute())}
                )
    return config
