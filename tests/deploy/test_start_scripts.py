"""The start scripts: what they hand to Flower, what they keep private, what they refuse."""

import sys
from importlib.metadata import version

import pytest
from kit import credentials, mode, stand_ins, started

cred = credentials()
ONE_PORT = tuple(map(int, version("flwr").split(".")[:2])) >= (1, 41)
"""Whether this Flower serves devices and commands at one address (docs/deploy.md)."""
port_each = pytest.mark.skipif(ONE_PORT, reason="this Flower has one port for all")
one_port = pytest.mark.skipif(not ONE_PORT, reason="this Flower has a port for each")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trial") / "keys"
    cred.write_trial(folder, nodes=1)
    return folder


@pytest.fixture
def server(tmp_path, keys):
    programs = stand_ins(tmp_path / "programs")

    def start(**said):
        environment = {"FEDDGM_CREDENTIALS": keys, "FEDDGM_STATE": tmp_path / "of" / "server"}
        return started("server.sh", programs, **(environment | said))

    return start


@pytest.fixture
def device(tmp_path, keys):
    programs = stand_ins(tmp_path / "programs")

    def start(**said):
        environment = {
            "FEDDGM_SUPERLINK": "server.example.org:9092",
            "FEDDGM_NODE_CONFIG": 'partition-id=3 data-dir="/a b"',
            "FEDDGM_CA": keys / "ca.crt",
            "FEDDGM_KEY": keys / "node-0",
            "FEDDGM_STATE": tmp_path / "of" / "device",
        }
        return started("device.sh", programs, **(environment | said))

    return start


def test_a_server_speaks_tls_wants_keys_and_keeps_registrations(server, keys, tmp_path):
    ended = server()
    assert ended.returncode == 0, ended.stderr
    state = tmp_path / "of" / "server"
    command = next(line for line in ended.stdout.splitlines() if "flower-superlink" in line)
    for part in (
        "--enable-supernode-auth",
        f"--database {state}/state.db",
        f"--ssl-ca-certfile {keys}/ca.crt",
        f"--ssl-certfile {keys}/server.pem",
        f"--ssl-keyfile {keys}/server.key",
    ):
        assert part in command
    assert "--insecure" not in command


@port_each
def test_by_default_devices_reach_one_port_and_commands_are_for_this_machine(server):
    command = server().stdout
    assert "--fleet-api-address 0.0.0.0:9092" in command
    assert "--control-api-address 127.0.0.1:9093" in command
    assert "--serverappio-api-address 127.0.0.1:9091" in command


@one_port
def test_one_address_serves_all_and_it_is_said_that_commands_ask_for_no_key(server):
    ended = server()
    assert "--host 0.0.0.0 --port 9092" in ended.stdout
    assert "at one address, 0.0.0.0:9092; commands ask for no key" in ended.stderr


def test_what_a_server_writes_is_its_owners_alone(server, tmp_path):
    ended = server()
    state = tmp_path / "of" / "server"
    assert [mode(p) for p in (state, state / "cwd", state / "flwr-home")] == [0o700] * 3
    assert ended.stdout.splitlines()[-3:] == ["0077", f"{state}/cwd", f"home {state}/flwr-home"]


def test_a_folder_that_others_could_enter_is_closed(server, tmp_path):
    state = tmp_path / "of" / "server"
    state.mkdir(parents=True, mode=0o755)
    assert server().returncode == 0
    assert mode(state) == 0o700


@pytest.mark.parametrize("name", ["FEDDGM_CONTROL", "FEDDGM_SERVERAPPIO"])
@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:9093", "[::]:9093", ":9093", "[::0:0]:9093", "[::00]:9093", "[00::]:9093",
        "00.0.0.0:9093", "[::ffff:0.0.0.0]:9093", "0:9093", "0x0:9093", "*:9093", "9093",
    ],
)  # fmt: skip
def test_commands_are_not_offered_at_every_address(server, name, address):
    ended = server(**{name: address})
    assert ended.returncode == 2
    assert f"{name} must not be every address, got '{address}'" in ended.stderr
    assert "flower-superlink" not in ended.stdout


@port_each
@pytest.mark.parametrize(
    "address", ["10.9.0.1:9093", "[::1]:9093", "localhost:9093", "cafe.example:9093"]
)
def test_a_management_network_may_be_given(server, address):
    assert f"--control-api-address {address}" in server(FEDDGM_CONTROL=address).stdout


def test_a_device_trusts_one_authority_and_shows_its_key(device, keys, tmp_path):
    ended = device()
    assert ended.returncode == 0, ended.stderr
    command = next(line for line in ended.stdout.splitlines() if "flower-supernode" in line)
    for part in (
        "--superlink server.example.org:9092",
        f"--root-certificates {keys}/ca.crt",
        f"--auth-supernode-private-key {keys}/node-0",
        "--host 127.0.0.1 --port 9094" if ONE_PORT else "--clientappio-api-address 127.0.0.1:9094",
        '--node-config partition-id=3 data-dir="/a b"',
    ):
        assert part in command
    # It waits for its server as long as it takes.
    assert not {"--insecure", "--max-retries", "--max-wait-time"} & set(command.split())
    state = tmp_path / "of" / "device"
    assert mode(state) == 0o700
    assert ended.stdout.splitlines()[-3:] == ["0077", f"{state}/cwd", f"home {state}/flwr-home"]


@pytest.mark.parametrize("name", ["FEDDGM_SUPERLINK", "FEDDGM_NODE_CONFIG"])
def test_a_device_says_what_it_was_not_told(device, name):
    ended = device(**{name: ""})
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"{name} must be set" in ended.stderr


def test_a_devices_own_port_is_its_own(device):
    ended = device(FEDDGM_CLIENTAPPIO="0.0.0.0:9094")
    assert ended.returncode == 2
    assert "FEDDGM_CLIENTAPPIO must not be every address" in ended.stderr


def test_paths_begin_at_the_root(device, server):
    for ended in (device(FEDDGM_KEY="node.key"), server(FEDDGM_CREDENTIALS="keys")):
        assert ended.returncode == 2
        assert "must be a path from / on, got" in ended.stderr


def test_a_key_that_others_may_read_is_refused(device, tmp_path):
    cred.write_node(tmp_path / "open.key")
    (tmp_path / "open.key").chmod(0o644)
    ended = device(FEDDGM_KEY=tmp_path / "open.key")
    assert (ended.returncode, "flower-supernode" in ended.stdout) == (1, False)
    assert "may be read by others (mode 0644); chmod 600" in ended.stderr


def test_an_expired_certificate_is_refused(server, device, tmp_path):
    cred.write_authority(tmp_path / "old")
    cred.write_server(tmp_path / "old", ["a.org"], days=1)
    cred.write_authority(tmp_path / "spent", days=0)
    (tmp_path / "spent" / "ca.crt").replace(tmp_path / "old" / "ca.crt")
    ends = [server(FEDDGM_CREDENTIALS=tmp_path / "old"), device(FEDDGM_CA=tmp_path / "old/ca.crt")]
    for ended in ends:
        assert ended.returncode == 1
        assert "ca.crt expired on" in ended.stderr
        assert "flower-super" not in ended.stdout


def test_a_server_without_its_half_says_what_to_install(server, tmp_path):
    bare = tmp_path / "programs" / "python"
    bare.unlink()
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    ended = server()
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "the server's half is not installed (diffusers, matplotlib, " in ended.stderr
    assert "pip install '.[server]'" in ended.stderr
