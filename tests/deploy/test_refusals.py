"""Who may not join a deployment, on a real one; each is told why, by Flower or by its handshake."""

import json

import pytest
from federation import OWN, WAIT_S, kill, until
from kit import DEPLOY, credentials
from ports import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.deploy]

cred = credentials()


@pytest.fixture
def attempt(federation, tmp_path):
    """Return what starts a SuperNode that must be refused, and waits for the sentence."""
    federation.whole(0)
    log = tmp_path / "device.log"

    def wait_for(process, *sentences, times=1, ends=True):
        def said():
            return all(log.read_text().count(sentence) >= times for sentence in sentences)

        until(said, f"the device is told {sentences}", tell=log.read_text)
        if ends:
            assert process.wait(WAIT_S) == 1
        else:
            assert process.poll() is None
        kill(process)
        return log.read_text()

    def device(*sentences, **said):
        """Start one by its script, with a key that nobody knows."""
        if not (tmp_path / "stranger").exists():
            cred.write_node(tmp_path / "stranger")
        settings = {
            "FEDDGM_SUPERLINK": f"{OWN}:{federation.fleet}",
            "FEDDGM_CA": federation.keys / "ca.crt",
            "FEDDGM_KEY": tmp_path / "stranger",
            "FEDDGM_STATE": tmp_path / "device",
            "FEDDGM_CLIENTAPPIO": f"{OWN}:{free_ports(1)[0]}",
            "FEDDGM_NODE_CONFIG": "partition-id=1 num-partitions=2",
        }
        command = ["bash", str(DEPLOY / "device.sh")]
        wait_for(federation.start(command, log, **settings | said), *sentences)

    def bare(*options, sentence, times=1, ends=True):
        """Start one by hand, with ``options`` that the script would never give it."""
        command = ["flower-supernode", "--superlink", f"{OWN}:{federation.fleet}", *options]
        command += ["--clientappio-api-address", f"{OWN}:{free_ports(1)[0]}"]
        command += ["--node-config", "partition-id=1 num-partitions=2"]
        process = federation.start(command, log, FLWR_HOME=tmp_path / "device")
        return wait_for(process, sentence, times=times, ends=ends)

    device.bare = bare
    yield device
    known = json.loads(federation.flwr("supernode", "list").stdout)["nodes"]
    assert [int(n["node-id"]) for n in known if n["status"] == "online"] == [federation.register(0)]


def test_a_plain_connection_is_not_answered(attempt):
    """No sentence reaches it: nothing that the server could say would be encrypted."""
    again = "Connection attempt failed, retrying in"
    said = attempt.bare("--insecure", sentence=again, times=3, ends=False)
    assert "SuperNode ID" not in said


def test_a_device_without_a_key_is_refused(federation, attempt):
    attempt.bare(
        "--root-certificates",
        str(federation.keys / "ca.crt"),
        sentence="SuperNode authentication is enabled. All SuperNodes must be registered",
    )


def test_an_unregistered_key_is_refused(attempt):
    attempt("No SuperNode found with the given public key.")


def test_a_server_of_another_authority_is_not_trusted(attempt, tmp_path):
    cred.write_authority(tmp_path / "other")
    attempt(
        "CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate",
        FEDDGM_CA=tmp_path / "other" / "ca.crt",
    )


def test_a_server_whose_certificate_has_expired_is_not_trusted(federation, attempt, tmp_path):
    """As one that goes on serving beyond its certificate's last day; at a start it is refused."""
    spent = tmp_path / "spent"
    spent.mkdir()
    for name in ("ca.crt", "ca.key"):
        (spent / name).write_bytes((federation.keys / name).read_bytes())
    second = 1 / (24 * 60 * 60)
    cred.write_server(spent, [OWN], days=second)
    fleet, control, serverappio = free_ports(3)
    server = federation.start(
        [
            *("flower-superlink", "--enable-supernode-auth"),
            *("--fleet-api-address", f"{OWN}:{fleet}"),
            *("--control-api-address", f"{OWN}:{control}"),
            *("--serverappio-api-address", f"{OWN}:{serverappio}"),
            *("--ssl-ca-certfile", str(spent / "ca.crt")),
            *("--ssl-certfile", str(spent / "server.pem")),
            *("--ssl-keyfile", str(spent / "server.key")),
        ],
        tmp_path / "spent.log",
        FLWR_HOME=tmp_path / "spent-home",
    )
    try:
        attempt(
            "CERTIFICATE_VERIFY_FAILED: certificate has expired",
            FEDDGM_SUPERLINK=f"{OWN}:{fleet}",
        )
    finally:
        kill(server)


def test_a_key_in_use_is_refused_to_a_second_device_and_to_a_second_registration(
    federation, attempt
):
    node = federation.register(0)
    attempt(
        f"SuperNode with node ID {node} could not be activated.",
        FEDDGM_KEY=federation.keys / "node-0",
    )
    told = federation.flwr("supernode", "register", str(federation.keys / "node-0.pub"))
    assert "The provided public key is already in use by another SuperNode." in told.stdout
