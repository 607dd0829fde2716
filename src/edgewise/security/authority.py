"""A certificate authority of one's own, for ``edgewise pki`` and for the launcher.

A folder has the authority (``ca.crt``, ``ca.key``) and a folder for each identity, ready to be
given to its process. Whoever has ``ca.key`` can be anybody: keep it where no process of the fleet
runs. Files are replaced whole, so issuing again is how certificates are rotated.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from edgewise.errors import BadInput, MissingExtra
from edgewise.security.identity import AUTHORITIES, CERTIFICATE, KEY, Identity

try:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as error:
    raise MissingExtra("live", error.name or "cryptography") from error

AUTHORITY_KEY = "ca.key"
AUTHORITY_DAYS = 3650.0
DAYS = 90.0
"""Validity of a certificate: long enough to be issued by hand, short enough to be rotated."""
SKEW = datetime.timedelta(minutes=5)
"""How far a clock may be behind the issuer's."""
LOCAL = ("localhost", "127.0.0.1", "::1")
"""Host names that every certificate has, for tools that check the name in a URL."""


class Authority:
    """Signs certificates; `create` makes a new one, `load` reads one."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate, self._key = certificate, key

    @classmethod
    def create(cls, days: float = AUTHORITY_DAYS) -> Authority:
        """A new authority with a key of its own, in memory."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edgewise authority")])
        usage = _usage(sign_certificates=True)
        certificate = (
            _begun(name, name, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """The authority in `folder`. Raises BadInput naming the file that is wrong."""
        try:
            certificate = x509.load_pem_x509_certificate(_read(folder / AUTHORITIES))
        except ValueError:
            raise BadInput(f"{folder / AUTHORITIES}: expected a certificate in PEM") from None
        file = folder / AUTHORITY_KEY
        try:
            key = serialization.load_pem_private_key(_read(file), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise BadInput(f"{file}: expected an unencrypted private key in PEM") from None
        if key.public_key() != certificate.public_key():
            raise BadInput(f"{file}: expected the key of {folder / AUTHORITIES}")
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise BadInput(f"{file}: expected an elliptic-curve key, as `edgewise pki` makes them")
        return cls(certificate, key)

    def save(self, folder: Path) -> None:
        """Write ``ca.crt`` and ``ca.key``. Raises BadInput."""
        _write(folder / AUTHORITY_KEY, _pem(self._key), 0o600)
        _write(folder / AUTHORITIES, self._pem_of(self._certificate), 0o644)

    def issue(
        self, identity: Identity, folder: Path, hosts: Iterable[str] = (), days: float = DAYS
    ) -> None:
        """Write a new certificate of `identity`, its key and this authority into `folder`.

        `hosts` are names and IP addresses by which tools may also call the process. Raises
        BadInput.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(identity)[:64])])
        names = [x509.DNSName(identity.dns), *map(_host, dict.fromkeys([*LOCAL, *hosts]))]
        issuer = self._certificate
        certificate = (
            _begun(issuer.subject, name, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                ),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        _write(folder / KEY, _pem(key), 0o600)
        _write(folder / CERTIFICATE, self._pem_of(certificate), 0o644)
        _write(folder / AUTHORITIES, self._pem_of(issuer), 0o644)

    @staticmethod
    def _pem_of(certificate: x509.Certificate) -> bytes:
        return certificate.public_bytes(serialization.Encoding.PEM)


def open_authority(folder: Path) -> Authority:
    """The authority in `folder`, made there if the folder has none. Raises BadInput."""
    if (folder / AUTHORITIES).exists():
        return Authority.load(folder)
    authority = Authority.create()
    authority.save(folder)
    return authority


def issue_all(
    authority: Authority,
    folder: Path,
    hosts: Mapping[Identity, Iterable[str]],
    days: float = DAYS,
) -> None:
    """Issue identities, each with its host names, into folders of their own in `folder`.

    Raises BadInput, also for two identities that TLS does not tell apart.
    """
    names = [identity.dns.lower() for identity in hosts]
    for identity in hosts:
        if names.count(identity.dns.lower()) > 1:
            raise BadInput(f"{identity}: another one differs in upper and lower case only")
    for identity, its_hosts in hosts.items():
        authority.issue(identity, folder / identity.folder, its_hosts, days)


def _begun(
    issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePublicKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if Identity.from_dns(host) is not None or not host.isascii() or not host:
        raise BadInput(f"host {host!r}: expected a host name or an IP address")
    return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror}") from None


def _write(file: Path, data: bytes, mode: int) -> None:
    """Replace a file; it never exists with another mode, and keeps its owner."""
    part = file.with_name(file.name + ".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        owner = file.stat() if file.exists() else None
        part.unlink(missing_ok=True)
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as out:
            os.fchmod(out.fileno(), mode)
            if owner is not None and owner.st_uid != os.geteuid():
                os.fchown(out.fileno(), owner.st_uid, owner.st_gid)
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)
    except OSError as error:
        raise BadInput(f"{file}: cannot be written: {error.strerror}") from None
