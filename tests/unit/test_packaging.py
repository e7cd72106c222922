"""What is shipped beside the code says the same as the code: units, journal events, man pages, defaults, deb."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tomllib
from collections import Counter
from dataclasses import MISSING, fields
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from llamad import __version__
from llamad.cli.grammar import make_parser
from llamad.config.definition import Definition, HostSettings, Table
from llamad.config.expected import kinds_at
from llamad.config.schema import read_json
from llamad.errors import ExitCode
from llamad.service.events import CAUSE_IDS, EVENTS
from llamad.supervision.causes import CAUSES, Policy

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "packaging/systemd"
MODEL_UNIT = UNITS / "llamad@.service"


def unit(path: Path) -> dict[str, dict[str, list[str]]]:
    """Sections of a unit file: key -> its values, in their order."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in path.read_text().replace("\\\n", " ").splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return sections


def systemd_version() -> int:
    if shutil.which("systemd-analyze") is None:
        return 0
    shown = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True)
    match = re.match(r"systemd (\d+)", shown.stdout)
    return int(match[1]) if match else 0


# -- units -----------------------------------------------------------------------------------------------------


def test_the_model_unit_retries_what_may_heal_and_nothing_else() -> None:
    sections = unit(MODEL_UNIT)
    service = sections["Service"]
    prevented = {int(word) for word in service["RestartPreventExitStatus"][0].split()}
    heals = {ExitCode.NO_MODEL_FILE, ExitCode.NO_DEVICE, ExitCode.TEMPORARY}
    assert prevented == set(ExitCode) - heals - {ExitCode.OK}
    assert service["Restart"] == ["on-failure"]  # exit 0 is a stop that was asked for
    assert sections["Unit"]["StartLimitIntervalSec"] == ["0"]
    assert {"RestartSteps", "RestartMaxDelaySec"} <= service.keys()


def test_the_model_unit_keeps_what_the_daemon_relies_on() -> None:
    service = unit(MODEL_UNIT)["Service"]
    expected = {
        "Type": "notify-reload",
        "NotifyAccess": "main",
        "ExecStart": "/usr/bin/llamad serve %i",
        "ExecReload": "/usr/bin/llamad check %i",
        "User": "_llamad",
        "KillMode": "mixed",
        "OOMPolicy": "continue",
        "FileDescriptorStoreMax": "16",
        "RuntimeDirectory": "llamad/model/%i",
        "RuntimeDirectoryMode": "0711",
        "RuntimeDirectoryPreserve": "restart",
        "StateDirectory": "llamad/state/%i",
        "CacheDirectory": "llamad/%i",
        "LogExtraFields": "LLAMAD_MODEL=%i",
        "LimitCORE": "0",
    }
    assert {key: service[key] for key in expected} == {key: [value] for key, value in expected.items()}
    assert service["ImportCredential"] == ["llamad.api-key.%i", "llamad.admin-key.%i", "llamad.tls-key.%i"]


def test_stopping_takes_longer_than_the_default_drain() -> None:
    seconds = int(unit(MODEL_UNIT)["Service"]["TimeoutStopSec"][0].removesuffix("s"))
    limits = Definition(model="m").limits
    assert seconds > limits.drain_s + 2 * limits.stop_s + 10


def test_nothing_waits_for_the_network_to_be_online() -> None:
    for path in UNITS.iterdir():
        for key in ("After", "Wants", "Requires"):
            assert "network-online" not in " ".join(unit(path)["Unit"].get(key, []))


def test_the_model_unit_has_no_condition_on_the_definition() -> None:
    assert not [key for key in unit(MODEL_UNIT)["Unit"] if key.startswith(("Assert", "Condition"))]


def test_no_unit_is_shared_that_a_start_needs_besides_the_target() -> None:
    """A stopping model delays the start of every unit that both it and another model are ordered after."""
    ours = [word for line in unit(MODEL_UNIT)["Unit"]["After"] for word in line.split() if "llamad" in word]
    assert ours == ["llamad-gpu@%i.service", "llamad.target"]


def test_the_target_makes_neither_boot_nor_shutdown_wait() -> None:
    target = unit(UNITS / "llamad.target")
    assert target["Unit"]["DefaultDependencies"] == ["no"]
    assert target["Unit"]["Conflicts"] == target["Unit"]["Before"] == ["shutdown.target"]
    assert target["Install"]["WantedBy"] == ["multi-user.target"]
    assert unit(MODEL_UNIT)["Install"]["WantedBy"] == unit(MODEL_UNIT)["Unit"]["PartOf"] == ["llamad.target"]


def test_only_gpus_are_opened() -> None:
    service = unit(MODEL_UNIT)["Service"]
    assert service["DevicePolicy"] == ["closed"]
    assert set(service["DeviceAllow"]) == {
        f"{name} rw"
        for name in (
            "char-nvidia", "char-nvidiactl", "char-nvidia-frontend", "char-nvidia-uvm", "char-nvidia-caps",
            "char-drm", "char-kfd", "/dev/dxg",
        )
    }  # fmt: skip
    assert "PrivateDevices" not in service


def test_gpu_nodes_are_made_before_every_start() -> None:
    gpu = unit(UNITS / "llamad-gpu@.service")
    assert gpu["Service"]["Type"] == ["oneshot"]
    assert "RemainAfterExit" not in gpu["Service"]
    assert gpu["Unit"]["ConditionPathExists"] == ["/usr/bin/nvidia-modprobe"]
    assert gpu["Unit"]["StartLimitIntervalSec"] == ["0"]


RPC_UNIT = UNITS / "llamad-rpc@.service"


def test_lent_devices_are_for_this_machine_until_somebody_says_else() -> None:
    service, text = unit(RPC_UNIT)["Service"], RPC_UNIT.read_text()
    assert text.startswith("# WARNING: ggml-rpc-server has no passwords, no encryption")
    assert service["DynamicUser"] == ["yes"] and "User" not in service  # a client owns it: it must own nothing
    assert service["IgnoreSIGPIPE"] == ["yes"] and service["Restart"] == ["always"] and unit(RPC_UNIT)["Unit"]["StartLimitIntervalSec"] == ["0"]
    assert service["IPAddressDeny"] == ["any"]
    networks = [ip_network(word) for word in service["IPAddressAllow"][0].split() if word != "localhost"]
    assert networks and all(network.is_private for network in networks)
    assert all("LLAMAD_RPC" not in line for line in service["Environment"])
    for folder in ("/etc/credstore", "/run/llamad", "/var/lib/llamad"):
        assert f"-{folder}" in service["InaccessiblePaths"][0].split()
    assert service["DeviceAllow"] == unit(MODEL_UNIT)["Service"]["DeviceAllow"]


def lend(tmp_path: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script of the unit, with a program in place of ggml-rpc-server that prints its arguments."""
    program = tmp_path / "rpc"
    program.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    program.chmod(0o755)
    env = {"PATH": "/usr/bin:/bin", "LLAMAD_RPC_SERVER": str(program), **environment}
    script = ROOT / "packaging/libexec/rpc-server"
    return subprocess.run([script, *argv], env=env, capture_output=True, text=True, check=False, timeout=10)


def test_the_settings_of_lent_devices_become_arguments(tmp_path: Path) -> None:
    assert lend(tmp_path, "50052").stdout.split() == ["-H", "127.0.0.1", "-p", "50052"]
    chosen = {"LLAMAD_RPC_HOST": "10.0.0.2", "LLAMAD_RPC_DEVICES": "CUDA0,CUDA1", "LLAMAD_RPC_THREADS": "8", "LLAMAD_RPC_CACHE": "yes"}
    words = lend(tmp_path, "1", **chosen).stdout.split()
    assert words == ["-H", "10.0.0.2", "-p", "1", "-d", "CUDA0,CUDA1", "-t", "8", "-c"]
    wrong = lend(tmp_path, "gpu1")
    assert (wrong.returncode, wrong.stdout) == (64, "") and "must be a port" in wrong.stderr
    missing = lend(tmp_path, "1", LLAMAD_RPC_SERVER="/none")
    assert missing.returncode == 69 and "llama.cpp-tools-extra" in missing.stderr


@pytest.mark.skipif(systemd_version() < 250, reason="needs systemd-analyze security --offline")
def test_exposure_of_the_unit_of_lent_devices_is_at_most_1_5() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", str(RPC_UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


@pytest.mark.skipif(systemd_version() < 250, reason="needs systemd-analyze security --offline")
def test_exposure_of_the_model_unit_is_at_most_1_5() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", str(MODEL_UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


@pytest.mark.skipif(systemd_version() < 254, reason="older systemd does not know all the settings")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for path in UNITS.iterdir():
        text = re.sub(r"/usr/bin/llamad\b|/usr/bin/nvidia-modprobe\b|/usr/libexec/llamad/rpc-server\b", "/bin/true", path.read_text())
        (tmp_path / path.name).write_text(text.replace("User=_llamad", "User=daemon"))
    names = [
        str(tmp_path / name)
        for name in ("llamad@x.service", "llamad-gpu@x.service", "llamad-rpc@50052.service", "llamad.target")
    ]
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# -- journal events ----------------------------------------------------------------------------------------------


def catalog() -> dict[str, str]:
    text = (ROOT / "packaging/catalog/llamad.catalog").read_text()
    parts = re.split(r"^-- ([0-9a-f]{32})$", text, flags=re.M)[1:]
    ids = parts[::2]
    assert not [message_id for message_id, count in Counter(ids).items() if count > 1]
    return dict(zip(ids, parts[1::2], strict=True))


def documented_events() -> dict[str, tuple[str, str, tuple[str, ...]]]:
    rows = re.findall(
        r"^\| `([a-z-]+)` \| `([0-9a-f]{32})` \| (\w+) \| ([A-Z_ ]*)\|", (ROOT / "docs/events.md").read_text(), re.M
    )
    return {name: (message_id, priority, tuple(fields.split())) for name, message_id, priority, fields in rows}


def test_code_and_documentation_have_the_same_events() -> None:
    assert documented_events() == {
        kind.name: (kind.message_id, kind.priority, kind.fields) for kind in EVENTS.values()
    }


def test_every_event_is_explained_with_the_fields_it_has() -> None:
    explained = catalog()
    assert set(explained) == {kind.message_id for kind in EVENTS.values()} | set(CAUSE_IDS.values())
    for kind in EVENTS.values():
        text = explained[kind.message_id]
        used = set(re.findall(r"@LLAMAD_([A-Z_]+)@", text))
        assert used - {"MODEL"} <= set(kind.fields), kind.name
        assert re.search(r"^Subject: .*\nDefined-By: llamad\nDocumentation: man:llamad", text, re.M), kind.name
        assert max(map(len, text.splitlines())) <= 80, kind.name


def test_every_cause_of_death_has_an_id_an_explanation_that_says_what_to_do_and_a_row() -> None:
    assert set(CAUSE_IDS) == set(CAUSES)
    ids = [*CAUSE_IDS.values(), *(kind.message_id for kind in EVENTS.values())]
    assert len(set(ids)) == len(ids)
    row = re.compile(r"^\| `([a-z-]+)` \| `([0-9a-f]{32})` \| ([a-z ]+) \| ([\d-]+) \|", re.M)
    documented = {name: rest for name, *rest in row.findall((ROOT / "docs/events.md").read_text())}
    explained = catalog()
    for name, cause in CAUSES.items():
        status = str(int(cause.exit_code)) if cause.final or cause.policy is Policy.RETRY else "-"
        assert documented[name] == [CAUSE_IDS[name], str(cause.policy), status], name
        text = explained[CAUSE_IDS[name]]
        used = set(re.findall(r"@LLAMAD_([A-Z_]+)@", text))
        assert used <= {"MODEL", *EVENTS["child-exited"].fields}, name
        assert "FIX" in used or not cause.fix, name
        assert max(map(len, text.splitlines())) <= 80, name


@pytest.mark.skipif(shutil.which("journalctl") is None, reason="needs journalctl")
def test_the_catalog_compiles(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/systemd/catalog").mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    shutil.copy(ROOT / "packaging/catalog/llamad.catalog", tmp_path / "usr/lib/systemd/catalog")
    journalctl = ["journalctl", f"--root={tmp_path}"]
    subprocess.run([*journalctl, "--update-catalog"], check=True, timeout=30)
    listed = subprocess.run([*journalctl, "--list-catalog"], check=True, timeout=30, capture_output=True, text=True)
    assert {line.split()[0] for line in listed.stdout.splitlines()} == set(catalog())


# -- keys: schema, man page, conffile, examples ---------------------------------------------------------------------


def schema_keys() -> dict[tuple[str, str], Any]:
    """(table, key) -> default; None for no default. The table "" is the top of a definition."""
    found: dict[tuple[str, str], Any] = {}
    for model in (Definition, HostSettings):
        for field in fields(model):
            if isinstance(field.default, Table):
                found |= {(field.name, inner): value for inner, value in _plain(field.default).items()}
            elif field.name != "environment":
                found["", field.name] = None if field.default is MISSING else _plain_value(field.default)
    return found


def _plain(table: Table) -> dict[str, Any]:
    return {field.name: _plain_value(getattr(table, field.name)) for field in fields(table)}


def _plain_value(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def man_keys() -> dict[tuple[str, str], Any]:
    found: dict[tuple[str, str], Any] = {}
    table = ""
    for line in (ROOT / "docs/man/llamad.toml.5.scd").read_text().splitlines():
        if heading := re.fullmatch(r"## \[(\w+)\]", line):
            table = heading[1]
        elif match := re.fullmatch(r"\*(\w+)\* (?:= (.+)|\((?:no default|required)\))", line):
            assert (table, match[1]) not in found, match[1]
            found[table, match[1]] = tomllib.loads(f"x = {match[2]}")["x"] if match[2] else None
    return found


def test_the_manual_page_has_every_key_with_its_default() -> None:
    assert man_keys() == schema_keys()


def man_entries() -> dict[tuple[str, str], str]:
    """(table, key) -> what the manual page says of it."""
    found: dict[tuple[str, str], str] = {}
    for section in re.split(r"^## ", (ROOT / "docs/man/llamad.toml.5.scd").read_text(), flags=re.M)[1:]:
        heading = re.match(r"\[(\w+)\]", section)
        for key, text in re.findall(r"^\*(\w+)\* [=(].*\n((?:\t.*\n)+)", section, re.M):
            found[heading[1] if heading else "", key] = " ".join(text.split())
    return found


def bounds_of(table: str, key: str) -> set[str]:
    """The bounds of the numbers that a key takes, or that its list or table does: `from 1 to 256`."""
    path = (table, key) if table else (key,)
    model = HostSettings if table == "host" else Definition
    kinds = [kind for inner in ((), (0,), ("any",)) for kind in kinds_at(model, (*path, *inner))]
    texts = {(kind.text(with_bounds=True), kind.text(with_bounds=False)) for kind in kinds if kind.type in (int, float)}
    return {bounded.removeprefix(plain).strip() for bounded, plain in texts} - {""}


def test_the_manual_page_has_the_bounds_of_every_number() -> None:
    entries = man_entries()
    assert entries.keys() == schema_keys().keys()
    missing = {
        (key, bounds)
        for key, text in entries.items()
        for bounds in bounds_of(*key)
        if bounds not in text.lower()
    }
    assert missing == set()
    assert bounds_of("placement", "parallel") == {"from 1 to 256"} and bounds_of("lora", "adapters")


def needed_by(key: str) -> dict[str, Any]:
    """What an example does not make sense without."""
    message = {"reasoning_budget_message": "Enough.", "reasoning_budget": 10}
    return {"server": message} if key == "reasoning_budget_message" else {}


def test_the_shipped_settings_show_every_default() -> None:
    text = (ROOT / "etc/llamad.toml").read_text()
    assert tomllib.loads(text) == {}
    shown = tomllib.loads(re.sub(r"^#(?=\[|[a-z_]+ = )", "", text, flags=re.M))
    assert read_json(HostSettings, json.dumps(shown)) == HostSettings()
    with_examples = tomllib.loads(re.sub(r"^##?(?=\[|\w+ = )", "", text, flags=re.M))
    for table, keys in with_examples.items():
        for key in keys:
            read_json(HostSettings, json.dumps({table: {key: keys[key]}} | needed_by(key)))
    written = {(table, key) for table, keys in with_examples.items() for key in keys if table != "environment"}
    tables = {field.name for field in fields(HostSettings)}
    host_keys = {(table, key) for table, key in schema_keys() if table in tables}
    assert written == host_keys
    defaults = {(table, key) for table, keys in shown.items() for key in keys if table != "environment"}
    assert {key for key in host_keys if schema_keys()[key] is None} == written - defaults


@pytest.mark.parametrize("path", sorted((ROOT / "docs/examples").glob("*.toml")), ids=lambda path: path.name)
def test_examples_are_valid_definitions(path: Path) -> None:
    read_json(Definition, json.dumps(tomllib.loads(path.read_text())))


def test_example_drop_ins_change_what_they_say() -> None:
    for path in (ROOT / "docs/examples").glob("drop-in-*.conf"):
        assert path.read_text().startswith(("# /etc/systemd/system/llamad@", "# /etc/systemd/system/llamad-rpc@")), path.name
        assert list(unit(path)) == ["Service"], path.name


# -- commands ----------------------------------------------------------------------------------------------------


def verbs() -> dict[str, set[str]]:
    """Verb -> its options, as the parser has them."""
    parser = make_parser()
    actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return {
        verb: {option for action in sub._actions for option in action.option_strings if option.startswith("--")}
        for verb, sub in actions[0].choices.items()
    }


def complete(line: str, directory: Path) -> set[str]:
    """What bash offers at the end of `line`."""
    script = f"""
        _filedir() {{ COMPREPLY+=(FILES); }}
        _init_completion() {{ words=({line}); [[ "{line}" == *' ' ]] && words+=(''); cword=$((${{#words[@]}} - 1))
            cur=${{words[cword]}}; prev=${{words[cword - 1]}}; }}
        source {ROOT}/packaging/completions/llamad && COMPREPLY=() && _llamad && printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    env = {"LLAMAD_CONFIG": str(directory), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-c", script], env=env, capture_output=True, text=True, check=False, timeout=10
    )
    assert done.stderr == ""
    return set(done.stdout.split())


def test_completion_offers_the_verbs_and_their_options(tmp_path: Path) -> None:
    assert complete("llamad ", tmp_path) == set(verbs())
    for verb, options in verbs().items():
        assert complete(f"llamad {verb} --", tmp_path) == options, verb


def test_completion_offers_the_names_of_definitions(tmp_path: Path) -> None:
    for name in ("phi4.toml", "qwen.toml", "llamad.toml", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "phi4.toml.d").mkdir()
    for verb in ("serve", "show", "status", "check"):
        assert complete(f"llamad {verb} ", tmp_path) == {"phi4", "qwen"}, verb
    assert complete("llamad plan ", tmp_path) == {"FILES", "phi4", "qwen"}
    assert complete("llamad status phi4 ", tmp_path) == {"phi4", "qwen"}
    assert complete("llamad serve phi4 ", tmp_path) == set()
    assert complete("llamad add new ", tmp_path) == {"FILES"}
    assert complete("llamad export ", tmp_path) == {"haproxy", "litellm", "nginx", "prometheus"}
    assert complete("llamad export haproxy --hosts a --model ", tmp_path) == {"phi4", "qwen"}
    assert complete(f"llamad --config {tmp_path} show p", tmp_path / "none") == {"phi4"}


def test_the_manual_page_has_every_verb_option_and_exit_status() -> None:
    text = (ROOT / "docs/man/llamad.8.scd").read_text()
    synopses = dict(re.findall(r"^\*(\w+)\*((?: .*)?)$", text.split("# OPTIONS")[0], re.M))
    assert {
        verb: set(re.findall(r"--[a-z0-9-]+", words)) for verb, words in synopses.items() if verb in verbs()
    } == {verb: options - {"--help"} for verb, options in verbs().items()}
    statuses = text.split("# EXIT STATUS")[1].split("# THE JOURNAL")[0]
    assert {int(code) for code in re.findall(r"^\*(\d+)\*$", statuses, re.M)} == set(ExitCode)
    readme = (ROOT / "README.md").read_text()
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", readme, re.M)} == set(ExitCode)


@pytest.mark.skipif(shutil.which("scdoc") is None, reason="needs scdoc")
@pytest.mark.parametrize("page", ["llamad.8", "llamad.toml.5"])
def test_manual_pages_compile(page: str) -> None:
    source = (ROOT / f"docs/man/{page}.scd").read_bytes()
    subprocess.run(["scdoc"], input=source, check=True, timeout=10, stdout=subprocess.DEVNULL)


# -- the Debian package -------------------------------------------------------------------------------------------


def test_versions_agree() -> None:
    changelog = (ROOT / "debian/changelog").read_text()
    assert changelog.startswith(f"llamad ({__version__}) ")
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__


def test_the_package_depends_on_what_the_code_needs() -> None:
    """dh_python3 drops version bounds and unknown names without a word, so they are written by hand."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    control = (ROOT / "debian/control").read_text()
    depends = re.search(r"^Depends: (.*?)^\w", control, re.M | re.S)
    assert depends is not None
    for requirement in project["dependencies"]:
        name, bound = requirement.split(">=")
        assert f"python3-{name} (>= {bound})" in depends[1], requirement
    assert "pynvml" not in depends[1]  # it is in contrib: a package in main may only suggest it


def test_everything_that_is_shipped_is_installed() -> None:
    lines = [line.split() for line in (ROOT / "debian/llamad.install").read_text().splitlines()]
    installed = {source for source, _folder in lines}
    installed |= set((ROOT / "debian/llamad.examples").read_text().split())
    for folder in ("systemd", "sysusers", "tmpfiles", "catalog", "libexec", "observability"):
        for path in (ROOT / "packaging" / folder).rglob("*"):
            assert path.is_dir() or str(path.relative_to(ROOT)) in installed
    assert all((ROOT / source).is_file() for source in installed if "*" not in source)


def test_maintainer_scripts_are_valid_shell() -> None:
    for name in ("preinst", "postinst", "postrm"):
        subprocess.run(["sh", "-n", str(ROOT / f"debian/llamad.{name}")], check=True, timeout=10)


def test_purging_never_touches_models() -> None:
    script = (ROOT / "debian/llamad.postrm").read_text()
    removed = re.search(r"rm -rf (.*)", script.replace("\\\n", " "))
    assert removed is not None
    assert removed[1].split() == [
        "/var/lib/llamad/state", "/var/lib/llamad/router", "/var/cache/llamad", "/run/llamad", "/var/cache/llamad-rpc",
        "/var/cache/private/llamad-rpc",
    ]  # fmt: skip


def test_shared_directories_have_the_right_owners() -> None:
    rows = [
        line.split() for line in (ROOT / "packaging/tmpfiles/llamad.conf").read_text().splitlines() if line[0] == "d"
    ]
    assert {path: (mode, user, group) for _d, path, mode, user, group, _age in rows} == {
        "/run/llamad": ("0755", "root", "root"),
        "/run/llamad/ledger": ("0700", "_llamad", "_llamad"),
        "/run/llamad/public": ("0755", "_llamad", "_llamad"),
        "/run/llamad/model": ("0755", "root", "root"),
        "/run/llamad/api": ("0755", "_llamad", "_llamad"),
        "/var/lib/llamad": ("0755", "root", "root"),
        "/var/lib/llamad/state": ("0755", "root", "root"),
        "/var/lib/llamad/models": ("2755", "root", "_llamad"),
        "/var/cache/llamad": ("0755", "root", "root"),
    }
