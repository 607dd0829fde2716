"""Who a process is and who it talks to: mutual TLS, with the identity in the certificate.

An identity is a role and a name. In a certificate it stands as the DNS name ``NAME.ROLE.edgewise``,
beside any host names that other tools check. A process has its identity in a *folder* with three
PEM files, as Kubernetes and cert-manager name them: ``tls.crt``, ``tls.key``, and ``ca.crt`` with
the authorities that it trusts. Both ends of a connection show a certificate; whoever connects says
whom it expects, so an address that leads to somebody else is refused. A relay passes the bytes on
and sees none of it.

The files are looked at again when a connection is made, and when they have changed the next ones
use them. Files that do not fit together (only half of them are replaced yet) are left alone.
"""

from __future__ import annotations

import datetime
import enum
import ipaddress
import logging
import os
import ssl
import time
from pathlib import Path
from typing import Any, NamedTuple

from edgewise.errors import BadInput, MissingExtra

try:
    from cryptography import x509
except ImportError as error:
    raise MissingExtra("live", error.name or "cryptography") from error

log = logging.getLogger(__name__)

CERTIFICATE, KEY, AUTHORITIES = "tls.crt", "tls.key", "ca.crt"
DOMAIN = ".edgewise"
LOOK_AGAIN = 1.0
"""s between looks at the files: three calls of stat."""
RENEW_AT = 0.1
"""Share of a certificate's validity that is left when it is time to renew it."""
TO_THE_MINUTE = "%Y-%m-%d %H:%M"


class Role(enum.StrEnum):
    """What a process may do; `edgewise.security.access` has the table."""

    NODE = "node"
    BALANCER = "balancer"
    RELAY = "relay"
    CLIENT = "client"
    EVALUATOR = "evaluator"
    """A client that also knows the right answers, and may report any request's outcome."""
    OPERATOR = "operator"
    MONITOR = "monitor"
    """Reads metrics and states, changes nothing."""


class Identity(NamedTuple):
    """A role and a name.

    >>> Identity(Role.NODE, "plaza").dns
    'plaza.node.edgewise'
    >>> str(Identity.parse("client/kiosk-7"))
    'client/kiosk-7'
    """

    role: Role
    name: str

    def __str__(self) -> str:
        return f"{self.role}/{self.name}"

    @property
    def owner(self) -> str:
        """As it stands before the ids of its requests (`domain.owned_id`)."""
        return f"{self.role}.{self.name}"

    @property
    def folder(self) -> str:
        """The name of its folder where identities are issued: ``node-plaza``, ``balancer``."""
        return self.name if self.name == self.role else f"{self.role}-{self.name}"

    @property
    def dns(self) -> str:
        """As it stands in a certificate."""
        return f"{self.name}.{self.role}{DOMAIN}"

    @classmethod
    def parse(cls, text: str) -> Identity:
        """Read ``ROLE/NAME``. Raises BadInput."""
        role, _, name = text.partition("/")
        identity = cls.from_dns(f"{name}.{role}{DOMAIN}")
        if identity is None:
            roles = ", ".join(Role)
            raise BadInput(
                f"expected ROLE/NAME with one of the roles {roles} and a name of letters, digits, "
                f"- and _, in parts of at most 63 between dots; got {text!r}"
            )
        return identity

    @classmethod
    def from_dns(cls, dns: str) -> Identity | None:
        """The identity that a DNS name in a certificate stands for; None if it stands for none."""
        name, _, role = dns.removesuffix(DOMAIN).rpartition(".")
        parts = name.split(".")
        plain = all(
            part.isascii() and part.replace("-", "").replace("_", "").isalnum() and len(part) <= 63
            for part in parts
        )
        if not dns.endswith(DOMAIN) or role not in list(Role) or not plain or len(name) > 64:
            return None
        return cls(Role(role), name)


BALANCER = Identity(Role.BALANCER, "balancer")
"""A fleet has one name for whoever balances."""
RELAY = Identity(Role.RELAY, "relay")


def node(name: str) -> Identity:
    """The identity of an edge server."""
    return Identity(Role.NODE, name)


def identity_of(peercert: Any) -> Identity | None:
    """The identity in a certificate as `ssl.SSLSocket.getpeercert` returns it.

    None if there is no certificate, or not exactly one identity in it.
    """
    names = [value for kind, value in (peercert or {}).get("subjectAltName", ()) if kind == "DNS"]
    found = [each for each in map(Identity.from_dns, names) if each is not None]
    return found[0] if len(found) == 1 else None


class Credentials:
    """A process's own identity, and the TLS contexts made of it.

    Parameters
    ----------
    folder:
        Has `CERTIFICATE`, `KEY` and `AUTHORITIES`.
    roles:
        The roles that this process may have.
    name:
        The name that it must have; None: any.
    look_every:
        s between looks at the files, at the least.

    Raises BadInput, in one line with the file and what was expected of it.
    """

    def __init__(
        self,
        folder: Path,
        roles: tuple[Role, ...],
        name: str | None = None,
        look_every: float = LOOK_AGAIN,
    ) -> None:
        self._folder, self._roles, self._name = folder, roles, name
        self._look_every = look_every
        self._stamp = self._files_stamp()
        self._looked_at = time.monotonic()
        self.own, self.expires = check_folder(folder, roles, name)
        self._server, self._client = _contexts(folder)
        # Connections begin with this one and go on with the newest.
        self._front = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _set_up_server(self._front, folder)
        self._front.sni_callback = self._use_newest

    def server_context(self) -> ssl.SSLContext:
        """For a server that asks every client for its certificate; follows changes of the files."""
        return self._front

    def calls(self, whom: Identity) -> dict[str, Any]:
        """Arguments of an aiohttp request that may reach `whom` and nobody else."""
        self._look_again()
        return {"ssl": self._client, "server_hostname": whom.dns}

    def _look_again(self) -> None:
        """Take the files in if they have changed."""
        now = time.monotonic()
        if now - self._looked_at < self._look_every:
            return
        self._looked_at = now
        stamp = self._files_stamp()
        if stamp == self._stamp:
            return
        try:
            own, expires = check_folder(self._folder, self._roles, self._name)
            contexts = _contexts(self._folder)
        except BadInput as error:
            log.warning("the identity stays as it was: %s", error)
        else:
            if own.name != self.own.name:
                log.warning("the identity stays as it was: the new one is %s", own)
            else:
                self.own, self.expires = own, expires
                self._server, self._client = contexts
                log.info("new certificate of %s, valid until %s", own, f"{expires:{TO_THE_MINUTE}}")
        self._stamp = stamp

    def _use_newest(self, connection: Any, _: str | None, __: ssl.SSLContext) -> None:
        self._look_again()
        connection.context = self._server

    def _files_stamp(self) -> tuple[tuple[int, int, int], ...]:
        stamp = []
        for name in (CERTIFICATE, KEY, AUTHORITIES):
            try:
                status = os.stat(self._folder / name)
            except OSError:
                stamp.append((0, 0, 0))
            else:
                # Also a file that became readable has changed.
                stamp.append((status.st_ino, status.st_size, status.st_ctime_ns))
        return tuple(stamp)


def calls(credentials: Credentials | None, whom: Identity) -> dict[str, Any]:
    """Arguments of an aiohttp request to `whom`; none without identities."""
    return {} if credentials is None else credentials.calls(whom)


def credentials_for(
    folder: str | None,
    roles: tuple[Role, ...],
    name: str | None = None,
    *,
    hosts: tuple[str, ...] = (),
    trust_anyone: bool = False,
) -> Credentials | None:
    """The credentials of a process, or None where it may do without.

    Without a folder it may listen on the loopback only, unless `trust_anyone`. Raises BadInput.
    """
    if folder is not None:
        return Credentials(Path(folder), roles, name)
    wide = next((host for host in hosts if not is_loopback(host)), None)
    if wide is not None and not trust_anyone:
        raise BadInput(
            f"host {wide}: others can reach it, so `identity: FOLDER` is needed (edgewise pki "
            "--help); `trust_anyone_who_connects: true` instead lets everybody do everything"
        )
    return None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a process that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# -- the files -----------------------------------------------------------------------------------


def check_folder(
    folder: Path, roles: tuple[Role, ...], name: str | None = None
) -> tuple[Identity, datetime.datetime]:
    """The identity in a folder, and until when it is valid.

    Raises BadInput if a file is missing, wrong, expired, readable by all, or somebody else's.
    """
    chain = _certificates(folder / CERTIFICATE, "this process's certificate")
    authorities = _certificates(folder / AUTHORITIES, "the authorities to trust")
    file, leaf = folder / CERTIFICATE, chain[0]
    expected = f"{'|'.join(roles)}/{name or 'NAME'}"
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        dns = names.get_values_for_type(x509.DNSName)
    except (x509.ExtensionNotFound, ValueError):
        dns = []
    own = identity_of({"subjectAltName": [("DNS", each) for each in dns]})
    if own is None or own.role not in roles or (name is not None and own.name != name):
        found = own or (", ".join(dns)[:120] or "a certificate without DNS names")
        raise BadInput(f"{file}: expected the identity {expected}, got {found}")
    now = datetime.datetime.now(datetime.UTC)
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise BadInput(
            f"{file}: expected a certificate that is valid now, got one for "
            f"{leaf.not_valid_before_utc:{TO_THE_MINUTE}} to "
            f"{leaf.not_valid_after_utc:{TO_THE_MINUTE}} UTC"
        )
    lifetime = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    if leaf.not_valid_after_utc - now < RENEW_AT * lifetime:
        log.warning("%s expires on %s UTC", file, f"{leaf.not_valid_after_utc:{TO_THE_MINUTE}}")
    if not _is_signed(chain, authorities):
        raise BadInput(
            f"{file}: expected to be signed by an authority in {folder / AUTHORITIES}, got "
            f"{leaf.issuer.rfc4514_string()[:80]!r}"
        )
    _check_key(folder / KEY)
    return own, leaf.not_valid_after_utc


def _certificates(file: Path, what: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(file.read_bytes())
    except OSError as error:
        raise BadInput(f"{file}: expected {what}: {error.strerror}") from None
    except ValueError:
        raise BadInput(f"{file}: expected {what} in PEM, got something else") from None


def _is_signed(chain: list[x509.Certificate], authorities: list[x509.Certificate]) -> bool:
    """Whether an authority signed the first of the chain, perhaps by way of the others."""
    certificate, *between = chain
    for each in [*authorities, *between]:
        try:
            certificate.verify_directly_issued_by(each)
        except Exception:  # a wrong signature is one of many errors
            continue
        return each in authorities or _is_signed(between, authorities)
    return False


def _check_key(file: Path) -> None:
    try:
        mode = file.stat().st_mode & 0o777
    except OSError as error:
        raise BadInput(f"{file}: expected this process's private key: {error.strerror}") from None
    if mode & 0o007:
        raise BadInput(f"{file}: expected mode 600, got {mode:o}: others can read the key")


def _contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For serving and for calling."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _set_up_server(server, folder)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks names
    _set_up(client, folder)
    return server, client


def _set_up_server(context: ssl.SSLContext, folder: Path) -> None:
    _set_up(context, folder)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # a resumed session would outlive a certificate


def _set_up(context: ssl.SSLContext, folder: Path) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    certificate, key = folder / CERTIFICATE, folder / KEY
    try:
        # An encrypted key would ask for its password on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except OSError as error:
        if not isinstance(error, ssl.SSLError):
            raise BadInput(
                f"{key}: expected this process's private key: {error.strerror}"
            ) from None
        why = "they do not belong together" if "MISMATCH" in str(error) else "it cannot be read"
        raise BadInput(f"{key}: expected the key of {certificate}, unencrypted: {why}") from None
    context.load_verify_locations(folder / AUTHORITIES)
