"""Make what a TLS deployment needs: an authority, a server certificate, node keys.

Usage: ``python deploy/credentials.py FOLDER NODES [--host NAME]...``. Writes
``ca.crt``, ``server.pem`` and ``server.key`` (valid for localhost and every ``--host``)
and a key pair ``node-0``, ``node-0.pub``, ... for each SuperNode. For trials and small
federations; an organisation will have an authority of its own.
"""

import argparse
import ipaddress
import sys
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
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LOOPBACK = ("localhost", "127.0.0.1", "::1")
LIFETIME = timedelta(days=365)

Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    """Return a key on the curve that Flower's node authentication uses."""
    return ec.generate_private_key(ec.SECP384R1())


def authority(key: Key) -> x509.Certificate:
    """Return a self-signed certificate that may sign others."""
    name = common_name("feddgm-flwr trial authority")
    builder = begin(name, name, key)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(key_usage(signs_certificates=True), critical=True)
    return builder.sign(key, hashes.SHA384())


def server_certificate(
    key: Key, hosts: list[str], ca: x509.Certificate, ca_key: Key
) -> x509.Certificate:
    """Return the SuperLink's certificate for ``hosts``."""
    names = x509.SubjectAlternativeName([host_name(host) for host in hosts])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    builder = begin(common_name(hosts[0]), ca.subject, key)
    builder = builder.add_extension(names, critical=False)
    builder = builder.add_extension(issuer, critical=False)
    builder = builder.add_extension(server, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    builder = builder.add_extension(key_usage(signs_certificates=False), critical=True)
    return builder.sign(ca_key, hashes.SHA384())


def begin(subject: x509.Name, issuer: x509.Name, key: Key) -> x509.CertificateBuilder:
    """Return what both certificates have in common."""
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A clock that runs a little behind must not refuse a fresh certificate.
        .not_valid_before(now - timedelta(minutes=10))
        .not_valid_after(now + LIFETIME)
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
    """Return a subject with this common name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def host_name(host: str) -> x509.GeneralName:
    """Return ``host`` as an address if it is one, else as a name."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def write_secret(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, from its first byte on."""
    path.touch(mode=0o600)
    path.write_bytes(data)


def write_all(folder: Path, nodes: int, hosts: list[str]) -> None:
    """Write the whole set into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    ca_key, server_key = new_key(), new_key()
    ca = authority(ca_key)
    server = server_certificate(server_key, [*LOOPBACK, *hosts], ca, ca_key)
    (folder / "ca.crt").write_bytes(ca.public_bytes(Encoding.PEM))
    (folder / "server.pem").write_bytes(server.public_bytes(Encoding.PEM))
    pem = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_secret(folder / "ca.key", ca_key.private_bytes(*pem))
    write_secret(folder / "server.key", server_key.private_bytes(*pem))
    for node in range(nodes):
        key = new_key()
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        write_secret(folder / f"node-{node}", secret)
        (folder / f"node-{node}.pub").write_bytes(public)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="credentials.py", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("nodes", type=int, help="number of SuperNodes")
    parser.add_argument(
        "--host", action="append", default=[], help="name or address of the SuperLink"
    )
    chosen = parser.parse_args(arguments)
    write_all(chosen.folder, chosen.nodes, chosen.host)
    return 0


if __name__ == "__main__":
    sys.exit(main())
