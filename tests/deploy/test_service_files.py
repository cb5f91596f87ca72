"""What keeps the start scripts running: systemd units, containers, and the files that they read."""

import re
import shutil
import subprocess
from configparser import RawConfigParser

import pytest
import yaml
from kit import DEPLOY, ROOT

SIDES = ("server", "device")


def unit(side):
    parser = RawConfigParser(strict=True)
    parser.optionxform = str
    parser.read(DEPLOY / "systemd" / f"feddgm-{side}.service")
    return parser


def told(side):
    """Return every variable of an env file, with those that are commented out."""
    text = (DEPLOY / "systemd" / f"{side}.env").read_text()
    return re.findall(r"^#?(FEDDGM_\w+)=(.*)$", text, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.mark.parametrize("side", SIDES)
def test_a_unit_restarts_whatever_the_exit_code_and_for_ever(side):
    service = unit(side)
    assert service["Service"]["Restart"] == "always"
    assert int(service["Service"]["RestartSec"]) >= 5
    assert service["Unit"]["StartLimitIntervalSec"] == "0"
    assert service["Install"]["WantedBy"] == "multi-user.target"


@pytest.mark.parametrize("side", SIDES)
def test_a_unit_takes_its_children_along(side):
    service = unit(side)["Service"]
    assert service["KillMode"] == "control-group"
    assert int(service["TimeoutStopSec"]) > 0
    assert "SendSIGKILL" not in service


@pytest.mark.parametrize("side", SIDES)
def test_a_unit_keeps_its_state_private_and_is_no_root(side):
    service = unit(side)["Service"]
    assert service["User"] == "feddgm"
    assert (service["UMask"], service["StateDirectoryMode"]) == ("0077", "0700")
    assert service["Environment"] == f"HOME=/var/lib/{service['StateDirectory']}"
    script = (DEPLOY / f"{side}.sh").read_text()
    assert f"FEDDGM_STATE:-/var/lib/{service['StateDirectory']}}}" in script


@pytest.mark.parametrize("side", SIDES)
def test_a_unit_starts_a_script_that_is_there(side):
    service = unit(side)["Service"]
    script = DEPLOY / f"{side}.sh"
    assert service["ExecStart"] == f"/opt/feddgm/deploy/{script.name}"
    assert script.stat().st_mode & 0o111
    assert service["EnvironmentFile"] == f"/etc/feddgm/{side}.env"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
@pytest.mark.parametrize("side", SIDES)
def test_systemd_finds_nothing_to_say_of_a_unit(side, tmp_path):
    file = tmp_path / f"feddgm-{side}.service"
    text = (DEPLOY / "systemd" / file.name).read_text()
    file.write_text(text.replace("/opt/feddgm/deploy", str(DEPLOY)))
    command = ["systemd-analyze", "verify", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("side", SIDES)
def test_an_env_file_tells_every_variable_that_the_script_reads(side):
    script = (DEPLOY / f"{side}.sh").read_text()
    read = set(re.findall(r"FEDDGM_\w+", script))
    assert {name for name, _ in told(side)} == read


@pytest.mark.parametrize("side", SIDES)
def test_an_env_file_says_the_defaults(side):
    script = (DEPLOY / f"{side}.sh").read_text()
    defaults = dict(re.findall(r"\$\{(FEDDGM_\w+):-([^}]+)\}", script))
    assert defaults
    assert {name: dict(told(side))[name] for name in defaults} == defaults


@pytest.mark.parametrize("side", SIDES)
def test_a_container_is_hardened_restarted_and_reads_the_same_file(compose, side):
    service = compose["services"][side]
    assert service["restart"] == "always"
    assert service["init"] is service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["env_file"] == unit(side)["Service"]["EnvironmentFile"]
    assert "privileged" not in service
    state = unit(side)["Service"]["StateDirectory"]
    assert f"{side}-state:/var/lib/{state}" in service["volumes"]
    assert f"{side}-state" in compose["volumes"]
    assert "/etc/feddgm:/etc/feddgm:ro" in service["volumes"]


def test_no_container_publishes_a_port(compose):
    assert not any("ports" in service for service in compose["services"].values())
    # So the server's own addresses are the host's, and its start script refuses all of them.
    assert compose["services"]["server"]["network_mode"] == "host"


def dockerfile():
    """Return the instructions by stage: name -> [(instruction, rest)]."""
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    stages = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        instruction, rest = line.split(maxsplit=1)
        if instruction == "FROM":
            stages[rest.split()[-1]] = stage = []
        stage.append((instruction, rest))
    return stages


@pytest.mark.parametrize("side", SIDES)
def test_an_image_ends_as_no_root_in_the_start_script(compose, side):
    build = compose["services"][side]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert ROOT / build["dockerfile"] == DEPLOY / "Dockerfile"
    stage = dockerfile()[build["target"]]
    assert [rest for name, rest in stage if name == "USER"] == ["10001:10001"]
    assert dict(stage)["ENTRYPOINT"] == f'["/opt/feddgm/deploy/{side}.sh"]'


@pytest.mark.parametrize("side", SIDES)
def test_an_image_copies_what_is_there_and_not_ignored(side):
    kept = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), flags=re.MULTILINE))
    copied = {
        source
        for name, rest in dockerfile()[side]
        if name == "COPY"
        for source in rest.split()[:-1]
    }
    assert copied == kept
    assert all((ROOT / source).exists() for source in copied)


def test_a_devices_image_has_not_the_servers_half():
    commands = [rest for name, rest in dockerfile()["device"] if name == "RUN"]
    assert "pip install ." in commands
    assert not any("server" in command or "vision" in command for command in commands)
    assert 'pip install ".[server]"' in [r for n, r in dockerfile()["server"] if n == "RUN"]
