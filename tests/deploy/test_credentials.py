"""deploy/credentials.py: for whom, how long, readable by whom, and what a renewal keeps."""

import ipaddress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from kit import credentials, mode

cred = credentials()


def now():
    """Return the time of asking: a long suite begins hours before its last test."""
    return datetime.now(UTC)


@pytest.fixture
def folder(tmp_path):
    cred.write_authority(tmp_path / "keys")
    cred.write_server(tmp_path / "keys", ["server.example.org", "192.0.2.7", "2001:db8::7"])
    return tmp_path / "keys"


def one(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def general(host):
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def trusted(folder, host, bundle=None, at=None):
    """Verify as a TLS client would that trusts ``bundle``."""
    authorities = x509.load_pem_x509_certificates((bundle or folder / "ca.crt").read_bytes())
    policy = PolicyBuilder().store(Store(authorities)).time(at or now())
    return policy.build_server_verifier(general(host)).verify(one(folder / "server.pem"), [])


@pytest.mark.parametrize(
    "host",
    ["server.example.org", "192.0.2.7", "2001:db8::7", "localhost", "127.0.0.1", "::1"],
)
def test_a_client_trusts_the_server_under_each_of_its_names(folder, host):
    assert trusted(folder, host)[0] == one(folder / "server.pem")


@pytest.mark.parametrize("host", ["other.example.org", "192.0.2.8", "example.org"])
def test_and_under_no_other(folder, host):
    with pytest.raises(VerificationError):
        trusted(folder, host)


def test_nor_after_its_days_nor_under_another_authority(folder, tmp_path):
    trusted(folder, "localhost", at=now() + timedelta(days=cred.SERVER_DAYS - 1))
    with pytest.raises(VerificationError):
        trusted(folder, "localhost", at=now() + timedelta(days=cred.SERVER_DAYS + 1))
    cred.write_authority(tmp_path / "other")
    with pytest.raises(VerificationError):
        trusted(folder, "localhost", bundle=tmp_path / "other" / "ca.crt")


def test_a_server_does_not_outlive_its_authority(tmp_path):
    cred.write_authority(tmp_path, days=5)
    cred.write_server(tmp_path, ["a.org"], days=300)
    ends = [one(tmp_path / name).not_valid_after_utc for name in ("ca.crt", "server.pem")]
    assert ends[0] == ends[1]
    assert timedelta(days=4) < ends[0] - now() <= timedelta(days=5, seconds=60)


def test_an_authority_that_has_expired_signs_nothing(tmp_path, capsys):
    cred.write_authority(tmp_path, days=0)
    assert cred.main(["server", str(tmp_path), "--host", "a.org"]) == 1
    assert "the authority expired on" in capsys.readouterr().err
    assert not (tmp_path / "server.key").exists()


@pytest.mark.parametrize("host", ["a.org:9092", "https://a.org", ""])
def test_a_host_is_a_name_without_a_port(folder, host, capsys):
    assert cred.main(["server", str(folder), "--host", host]) == 1
    assert "--host must be a name or an address without a port" in capsys.readouterr().err


def test_secrets_are_their_owners_alone_whatever_the_umask(tmp_path):
    before = cred.os.umask(0)
    try:
        cred.write_trial(tmp_path / "keys", nodes=2)
    finally:
        cred.os.umask(before)
    modes = {path.name: mode(path) for path in (tmp_path / "keys").iterdir()}
    secret, public = ("ca.key", "server.key", "node-0", "node-1"), ("ca.crt", "server.pem")
    assert modes == {
        **dict.fromkeys(secret, 0o600),
        **dict.fromkeys((*public, "node-0.pub", "node-1.pub"), 0o644),
    }
    assert mode(tmp_path / "keys") == 0o700


def test_the_server_has_the_key_of_its_certificate(folder):
    key = load_pem_private_key((folder / "server.key").read_bytes(), password=None)
    assert key.public_key() == one(folder / "server.pem").public_key()


def test_a_renewal_has_a_new_key_and_the_old_authority(folder):
    authority = (folder / "ca.crt").read_bytes()
    before = {name: (folder / name).read_bytes() for name in ("server.key", "server.pem")}
    assert cred.main(["server", str(folder), "--host", "server.example.org"]) == 0
    assert all((folder / name).read_bytes() != content for name, content in before.items())
    assert (folder / "ca.crt").read_bytes() == authority
    trusted(folder, "server.example.org")


def test_a_device_that_holds_two_authorities_trusts_servers_of_both(folder, tmp_path):
    new = tmp_path / "new"
    cred.write_authority(new)
    cred.write_server(new, ["server.example.org"])
    bundle = tmp_path / "both.crt"
    bundle.write_bytes((folder / "ca.crt").read_bytes() + (new / "ca.crt").read_bytes())
    for place in (folder, new):
        trusted(place, "server.example.org", bundle=bundle)


def test_an_authority_and_a_nodes_key_are_not_written_over(folder, capsys):
    cred.write_node(folder / "node.key")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert cred.main(["authority", str(folder)]) == 1
    assert cred.main(["node", str(folder / "node.key")]) == 1
    assert capsys.readouterr().err.count("is there already") == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_nodes_key_is_of_the_kind_that_flower_takes(tmp_path):
    from flwr.cli.supernode.register import try_load_public_key

    cred.write_node(tmp_path / "of" / "node.key")
    public = tmp_path / "of" / "node.key.pub"
    secret = load_ssh_private_key((tmp_path / "of" / "node.key").read_bytes(), password=None)
    assert isinstance(secret.curve, ec.SECP384R1)
    assert load_ssh_public_key(public.read_bytes()) == secret.public_key()
    assert try_load_public_key(public).startswith(b"-----BEGIN PUBLIC KEY-----")


def test_a_check_says_until_when_and_for_whom(folder, capsys):
    files = [str(folder / name) for name in ("ca.crt", "server.pem", "server.key")]
    assert cred.main(["check", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert f"{cred.SERVER_DAYS - 1} days, for server.example.org 192.0.2.7" in lines[1]
    assert not any("RENEW" in line for line in lines)


def test_a_check_warns_a_month_ahead_and_refuses_what_has_expired_or_not_begun(folder):
    path = folder / "server.pem"
    ends = one(path).not_valid_after_utc
    assert "RENEW IT SOON" in cred.check(path, ends - timedelta(days=29))[0]
    assert "RENEW" not in cred.check(path, ends - timedelta(days=31))[0]
    with pytest.raises(ValueError, match=r"server.pem expired on .*; renew it"):
        cred.check(path, ends + timedelta(seconds=1))
    with pytest.raises(ValueError, match="is the clock right"):
        cred.check(path, now() - timedelta(days=1))


def test_a_check_sees_every_certificate_of_a_bundle(folder, tmp_path):
    cred.write_authority(tmp_path / "new", days=10)
    bundle = tmp_path / "both.crt"
    bundle.write_bytes(b"".join((p / "ca.crt").read_bytes() for p in (folder, tmp_path / "new")))
    lines = cred.check(bundle, now())
    assert [("RENEW" in line) for line in lines] == [False, True]


def test_of_two_authorities_the_old_one_may_expire_before_it_is_dropped(folder, tmp_path):
    cred.write_authority(tmp_path / "old", days=10)
    bundle = tmp_path / "both.crt"
    bundle.write_bytes(b"".join((p / "ca.crt").read_bytes() for p in (tmp_path / "old", folder)))
    later = now() + timedelta(days=20)
    valid, over = cred.check(bundle, later)
    assert "valid until" in valid
    assert over.startswith(f"{bundle}: one expired on ")
    assert over.endswith("; drop it")
    with pytest.raises(ValueError, match="renew it"):
        cred.check(tmp_path / "old" / "ca.crt", later)


@pytest.mark.parametrize("name", ["ca.key", "server.key", "node.key"])
@pytest.mark.parametrize("others", [0o640, 0o604])
def test_a_check_refuses_a_key_that_others_may_read(folder, name, others):
    cred.write_node(folder / "node.key")
    assert cred.check(folder / name, now()) == []
    (folder / name).chmod(others)
    with pytest.raises(ValueError, match=rf"mode 0{others:o}\); chmod 600"):
        cred.check(folder / name, now())


def test_a_check_of_nothing_says_so(tmp_path, capsys):
    assert cred.main(["check", str(tmp_path / "node.key")]) == 1
    assert "node.key is not a file" in capsys.readouterr().err


def test_a_key_of_another_authority_signs_nothing(folder, tmp_path):
    cred.write_authority(tmp_path / "other")
    (tmp_path / "other" / "ca.key").replace(folder / "ca.key")
    with pytest.raises(ValueError, match="is not the key of"):
        cred.write_server(folder, ["a.org"])
