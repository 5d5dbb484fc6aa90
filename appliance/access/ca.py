"""The box's own certificate authority, and the certificates that it keeps for itself and for the local user.

    <data>/access/{ca.pem, ca.key}             the authority: EC P-256, ten years, made at the first start
    <data>/access/{server.pem, server.key}     the server: 30 days
    <data>/clients/local/{cert.pem, key.pem, ca.pem}   the user that runs the daemon, as administrator: 30 days

`prepare` brings all of it up to date, in two milliseconds where nothing is due: call it at each start, and as often
later as you like. Leaves are renewed when two thirds of their time have passed, or when they are not this authority's
or do not name this host. Keys are 0600 in directories that are 0700. Identity is a URI name (SPIFFE-ID); profile:
RFC 5280.
"""

import fcntl
import getpass
import ipaddress
import os
import re
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.access.roles import identity_uri
from appliance.errors import KeyUnavailable
from appliance.types import Principal, Role

AUTHORITY_DAYS = 3650
LEAF_DAYS = 30
CLOCK_SKEW = timedelta(minutes=5)
DEFAULT_TENANT = "default"
WILDCARD_HOSTS = ("", "0.0.0.0", "::")  # noqa: S104 - compared with, never bound
log = structlog.get_logger()

Names = Sequence[x509.GeneralName]


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """What a TLS server shows and trusts, PEM."""

    key: bytes
    certificate: bytes
    client_authority: bytes


@dataclass(frozen=True, slots=True, repr=False)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, common_name: str, names: Names, usage: x509.ObjectIdentifier, now: datetime) -> tuple[bytes, bytes]:
        """A new leaf: certificate and key, PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(common_name, key, now, LEAF_DAYS, self.certificate.subject)
        builder = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        certificate = builder.sign(self.key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM), _private_pem(key)


def prepare(data_dir: Path, listen_host: str, now: datetime | None = None, http_host: str = "") -> Identity:
    """The server's identity, after making or renewing whatever is due. Raises KeyUnavailable."""
    now = now or datetime.now(UTC)
    server, local = data_dir / "access", data_dir / "clients" / "local"
    _private_directory(server)
    _private_directory(local)
    user = [x509.UniformResourceIdentifier(identity_uri(local_principal()))]
    with _alone(server):
        authority = open_authority(server, now)
        names = [_general_name(host) for host in host_names(listen_host, http_host)]
        _renew(server, "server.pem", "server.key", authority, names, ExtendedKeyUsageOID.SERVER_AUTH, now)
        _renew(local, "cert.pem", "key.pem", authority, user, ExtendedKeyUsageOID.CLIENT_AUTH, now)
        if not (local / "ca.pem").exists() or (local / "ca.pem").read_bytes() != authority.pem:
            write_private(local / "ca.pem", authority.pem)
        return Identity((server / "server.key").read_bytes(), (server / "server.pem").read_bytes(), authority.pem)


def local_principal() -> Principal:
    """The user that runs this process, as administrator of the default tenant."""
    try:
        login = getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in containers
        login = f"uid-{os.getuid()}"
    safe = re.sub(r"[^A-Za-z0-9._-]", "-", login)[:64].strip(".-") or "local"
    return Principal(DEFAULT_TENANT, safe, Role.ADMIN)


def open_authority(directory: Path, now: datetime) -> Authority:
    """The authority in `directory`, made where there is none.

    Raises KeyUnavailable where half of it is missing, or certificate and key don't belong together: a new authority
    would shut every client out, so that is for a person to decide.
    """
    certificate_path, key_path = directory / "ca.pem", directory / "ca.key"
    _private_directory(directory)
    if not certificate_path.exists():
        # Of an authority the certificate is written last: a key without one has signed nothing, unless a leaf says so.
        if key_path.exists() and (directory / "server.pem").exists():
            raise KeyUnavailable(f"The authority in {directory} is not whole: ca.pem is missing.")
        key = ec.generate_private_key(ec.SECP256R1())
        write_private(key_path, _private_pem(key))
        write_private(certificate_path, _self_signed(key, now).public_bytes(serialization.Encoding.PEM))
        log.info("access.authority_made", days=AUTHORITY_DAYS)
    try:
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        loaded = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        raise KeyUnavailable(f"The authority in {directory} cannot be read: ca.pem or ca.key is damaged.") from None
    if not isinstance(loaded, ec.EllipticCurvePrivateKey) or certificate.public_key() != loaded.public_key():
        raise KeyUnavailable(f"The authority in {directory} does not fit together: ca.key is not the key of ca.pem.")
    return Authority(certificate, loaded)


def _self_signed(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    # A name of its own: authorities of two boxes that are trusted by one client must not be taken for each other.
    common_name = f"appliance authority {secrets.token_hex(4)}"
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = _builder(common_name, key, now, AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())


def _builder(
    common_name: str, key: ec.EllipticCurvePrivateKey, now: datetime, days: int, issuer: x509.Name | None = None
) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _renew(
    directory: Path,
    certificate_name: str,
    key_name: str,
    authority: Authority,
    names: Names,
    usage: x509.ObjectIdentifier,
    now: datetime,
) -> None:
    """Replace a leaf that is not good any more."""
    certificate_path, key_path = directory / certificate_name, directory / key_name
    if _is_good(certificate_path, key_path, authority, names, now):
        return
    certificate, key = authority.issue(directory.name, names, usage, now)
    certificate_path.unlink(missing_ok=True)  # a crash in between leaves no certificate, and so a new try
    write_private(key_path, key)
    write_private(certificate_path, certificate)
    log.info("access.certificate_issued", file=certificate_name, days=LEAF_DAYS)


def _is_good(certificate_path: Path, key_path: Path, authority: Authority, names: Names, now: datetime) -> bool:
    """Is it this authority's, for these names and this key, and in the first two thirds of its time?"""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
        certificate.verify_directly_issued_by(authority.certificate)
        named = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    fresh = begin <= now < begin + (end - begin) * 2 / 3
    return fresh and list(named) == list(names) and certificate.public_key() == key.public_key()


def server_files(data_dir: Path) -> tuple[Path, Path]:
    """Where `prepare` keeps the server's certificate and its key."""
    return data_dir / "access" / "server.pem", data_dir / "access" / "server.key"


def host_names(*listen_hosts: str) -> Sequence[str]:
    """This machine by every name that a client may use for it."""
    hosts = ["localhost", "127.0.0.1", "::1", socket.gethostname(), *_own_addresses()]
    for host in (given.strip("[]") for given in listen_hosts):
        if host not in (*WILDCARD_HOSTS, *hosts):
            hosts.append(host)
    return [host for host in hosts if host.isascii()]


def _own_addresses() -> list[str]:
    """The addresses that this machine's name stands for; a link-local one is of no use to a client."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)}
    except OSError:
        return []
    return sorted(address for address in found if "%" not in address and address not in ("127.0.0.1", "::1"))


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One renewal at a time, whichever thread or process begins it: a key must fit the certificate beside it."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _private_directory(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)


def write_private(path: Path, content: bytes) -> None:
    """Replace a file in one step that outlives power loss; nobody else may read it at any moment."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
            target.write(content)
            target.flush()
            os.fsync(target.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
