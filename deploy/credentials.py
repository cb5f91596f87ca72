"""Make, renew and check what a TLS deployment needs: an authority, a server certificate, node keys.

Usage::

    credentials.py authority FOLDER                 # ca.crt, ca.key: once, kept off the server
    credentials.py server FOLDER --host NAME ...    # server.pem, server.key; signed with ca.key
    credentials.py node FILE                        # FILE, FILE.pub: on the device itself
    credentials.py trial FOLDER NODES               # all of it in one folder, for one machine
    credentials.py check FILE ...                   # until when valid, for whom, who may read it

``server`` again renews: a new key and a new certificate under the same authority, which devices
go on trusting. A file that holds a secret is 0600 from its first byte on. It knows nothing of
Flower but the kind of key that a SuperNode needs.
"""

import argparse
import ipaddress
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LOOPBACK = ("localhost", "127.0.0.1", "::1")
AUTHORITY_DAYS = 3650
SERVER_DAYS = 365
WARNING_DAYS = 30

Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class Authority:
    """Who signs: a certificate that devices trust, and its key."""

    certificate: x509.Certificate
    key: Key

    @classmethod
    def read(cls, folder: Path) -> "Authority":
        """Return the authority in ``folder``."""
        certificate = x509.load_pem_x509_certificate(existing(folder / "ca.crt").read_bytes())
        key = load_pem_private_key(existing(folder / "ca.key").read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{folder / 'ca.key'} must hold an elliptic-curve key")
        if key.public_key() != certificate.public_key():
            raise ValueError(f"{folder / 'ca.key'} is not the key of {folder / 'ca.crt'}")
        return cls(certificate, key)


def new_key() -> Key:
    """Return a key on the curve that Flower's node authentication uses."""
    return ec.generate_private_key(ec.SECP384R1())


def new_authority(days: int) -> Authority:
    """Return a self-signed certificate that may sign others, and its key."""
    key, now = new_key(), datetime.now(UTC)
    # Of its day: while devices change from one authority to the next they trust both.
    name = common_name(f"feddgm-flwr authority {now:%Y-%m-%d}")
    builder = begin(name, name, key, now + timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(key_usage(signs_certificates=True), critical=True)
    return Authority(builder.sign(key, hashes.SHA384()), key)


def server_certificate(key: Key, hosts: list[str], ca: Authority, days: int) -> x509.Certificate:
    """Return the SuperLink's certificate for ``hosts``, which does not outlive its authority."""
    names = x509.SubjectAlternativeName([host_name(host) for host in hosts])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())
    server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    until = min(datetime.now(UTC) + timedelta(days=days), ca.certificate.not_valid_after_utc)
    if until <= datetime.now(UTC):
        raise ValueError(f"the authority expired on {until:%Y-%m-%d}; make a new one")
    builder = begin(common_name(hosts[0]), ca.certificate.subject, key, until)
    builder = builder.add_extension(names, critical=False)
    builder = builder.add_extension(issuer, critical=False)
    builder = builder.add_extension(server, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    builder = builder.add_extension(key_usage(signs_certificates=False), critical=True)
    return builder.sign(ca.key, hashes.SHA384())


def begin(
    subject: x509.Name, issuer: x509.Name, key: Key, until: datetime
) -> x509.CertificateBuilder:
    """Return what both certificates have in common."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A clock that runs a little behind must not refuse a fresh certificate.
        .not_valid_before(datetime.now(UTC) - timedelta(minutes=10))
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """Return what a key may do: sign certificates, or handshakes."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def common_name(name: str) -> x509.Name:
    """Return a subject with this common name, cut to the 64 characters that it may have."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def host_name(host: str) -> x509.GeneralName:
    """Return ``host`` as an address if it is one, else as a name."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not host or "/" in host or ":" in host:
        raise ValueError(
            f"--host must be a name or an address without a port, got {host!r};"
            " write server.example.org or 192.0.2.7"
        )
    return x509.DNSName(host)


def existing(path: Path) -> Path:
    """Return ``path`` if a file is there."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file; make it with credentials.py, or say where it is")
    return path


def write(path: Path, data: bytes, *, secret: bool = False) -> None:
    """Write all of a file or nothing; a secret is its owner's alone from its first byte on."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    part.chmod(0o600 if secret else 0o644)  # whatever the umask
    part.replace(path)


def make_folder(folder: Path) -> None:
    """Make a folder that only its owner may enter."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def absent(*paths: Path) -> None:
    """Refuse to write over keys that others may rely on."""
    for path in paths:
        if path.exists():
            raise ValueError(
                f"{path} is there already; move it away first if you mean to replace it"
            )


def pem(key: Key) -> bytes:
    """Return a key as TLS servers read it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def write_authority(folder: Path, days: int = AUTHORITY_DAYS) -> None:
    """Write ``ca.crt`` and ``ca.key`` into ``folder``."""
    absent(folder / "ca.crt", folder / "ca.key")
    make_folder(folder)
    ca = new_authority(days)
    write(folder / "ca.key", pem(ca.key), secret=True)
    write(folder / "ca.crt", ca.certificate.public_bytes(Encoding.PEM))


def write_server(folder: Path, hosts: list[str], days: int = SERVER_DAYS) -> None:
    """Write ``server.pem`` and ``server.key``, signed by the authority in ``folder``."""
    ca, key = Authority.read(folder), new_key()
    # Loopback too: commands on the server, and those through a tunnel, reach it by that name.
    certificate = server_certificate(key, [*hosts, *LOOPBACK], ca, days)
    write(folder / "server.key", pem(key), secret=True)
    write(folder / "server.pem", certificate.public_bytes(Encoding.PEM))


def write_node(path: Path) -> None:
    """Write a SuperNode's key to ``path`` and what the server needs of it to ``path``.pub."""
    public_path = path.with_name(f"{path.name}.pub")
    absent(path, public_path)
    make_folder(path.parent)
    key = new_key()
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    write(path, secret, secret=True)
    write(public_path, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))


def write_trial(folder: Path, nodes: int) -> None:
    """Write the whole set for a deployment on one machine."""
    write_authority(folder)
    write_server(folder, [])
    for node in range(nodes):
        write_node(folder / f"node-{node}")


def check(path: Path, now: datetime) -> list[str]:
    """Say what is in a file.

    Returns
    -------
    list[str]
        A line a certificate, in time to be renewed or not. Empty for a key.

    Raises
    ------
    ValueError
        If the file is missing, holds a key that others may read, or no certificate that is valid
        now, or one that is not valid yet.
    """
    content = existing(path).read_bytes()
    if b"PRIVATE KEY-----" in content and (mode := path.stat().st_mode & 0o777) & 0o077:
        raise ValueError(f"{path} may be read by others (mode {mode:04o}); chmod 600 {path}")
    if b"-----BEGIN CERTIFICATE-----" not in content:
        return []
    found = x509.load_pem_x509_certificates(content)
    # Of two authorities, while one follows the other, the old one may expire before it is dropped.
    alive = [c for c in found if now <= c.not_valid_after_utc]
    over = [c for c in found if alive and c not in alive]
    dropped = [f"{path}: one expired on {c.not_valid_after_utc:%Y-%m-%d}; drop it" for c in over]
    return [*(seen(path, c, now) for c in alive or found), *dropped]


def seen(path: Path, certificate: x509.Certificate, now: datetime) -> str:
    """Return a line on one certificate that is valid at ``now``; raise on any other."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > ends:
        raise ValueError(f"{path} expired on {ends:%Y-%m-%d}; renew it (credentials.py)")
    if now < begins:
        raise ValueError(
            f"{path} is valid from {begins:%Y-%m-%d %H:%M} UTC on; is the clock right?"
        )
    days = (ends - now).days
    soon = "; RENEW IT SOON" if days < WARNING_DAYS else ""
    return f"{path}: valid until {ends:%Y-%m-%d}, {days} days{for_whom(certificate)}{soon}"


def for_whom(certificate: x509.Certificate) -> str:
    """Return the names that a certificate is for, as the end of a line."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    return f", for {' '.join(str(name.value) for name in names)}"


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(
        prog="credentials.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True)
    authority = commands.add_parser("authority", help="once, on a machine that is no server")
    authority.add_argument("folder", type=Path)
    authority.add_argument("--days", type=int, default=AUTHORITY_DAYS)
    server = commands.add_parser("server", help="make or renew the SuperLink's certificate")
    server.add_argument("folder", type=Path, help="where ca.crt and ca.key are")
    server.add_argument("--host", action="append", required=True, help="its name or address")
    server.add_argument("--days", type=int, default=SERVER_DAYS)
    node = commands.add_parser("node", help="make a SuperNode's key, on its device")
    node.add_argument("file", type=Path)
    trial = commands.add_parser("trial", help="everything, for a deployment on one machine")
    trial.add_argument("folder", type=Path)
    trial.add_argument("nodes", type=int, help="number of SuperNodes")
    checked = commands.add_parser("check", help="validity, names, permissions")
    checked.add_argument("files", type=Path, nargs="+")
    return top


def run(chosen: argparse.Namespace) -> None:
    """Do what was asked."""
    match chosen.command:
        case "authority":
            write_authority(chosen.folder, chosen.days)
        case "server":
            write_server(chosen.folder, chosen.host, chosen.days)
        case "node":
            write_node(chosen.file)
        case "trial":
            write_trial(chosen.folder, chosen.nodes)
        case "check":
            for file in chosen.files:
                for line in check(file, datetime.now(UTC)):
                    sys.stdout.write(f"{line}\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    try:
        run(parser().parse_args(arguments))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
