"""What `llamad doctor` finds of a model: its definition, engine, address, and the limits of its unit."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from llamad.service.doctor import addresses, definitions, engine, limits
from llamad.service.doctor.engine import Target
from llamad.service.doctor.finding import Finding, Report, Severity, Unseen
from llamad.service.doctor.host import Answer
from llamad.service.doctor.sandbox import OwnSandbox, UnitSandbox
from llamad.service.doctor.text import report_text
from tests.support.doctor_host import HELP, ME, FakeCommands, Fakes, engine_says, make_host, the_one, wrong

MODEL = 'model = "/srv/nosuch/m.gguf"\n'
GPU = '[environment]\nGGML_VK_VISIBLE_DEVICES = "0"\n'
NVIDIA = ("0000:01:00.0", "0x10de", "nvidia")


# -- definitions ---------------------------------------------------------------------------------------------------


def test_a_mistake_opens_the_file_at_its_line(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    path = fakes.define("phi4", f"{MODEL}[placement]\ncontxt = 4096\nparallel = \"two\"\n")
    first, second = wrong(definitions.check(fakes.host, "phi4"))
    assert first.what.startswith(f"{path}:3:1: placement.contxt: unknown key")
    assert "did you mean context?" in first.why
    assert first.cure == f"${{EDITOR:-editor}} +3 {path}"
    assert second.cure == f"${{EDITOR:-editor}} +4 {path}"


def test_a_missing_model_and_a_hidden_one(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.define("phi4", MODEL)
    fakes.define("home", 'model = "/home/joe/m.gguf"\n')
    assert "does not exist" in the_one(definitions.check(fakes.host, "phi4")).what
    assert "ProtectHome=" in the_one(definitions.check(fakes.host, "home")).what


def test_mistakes_of_the_host_are_told_once(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.define("phi4", MODEL)
    fakes.define("llamad", "[host]\nserver = 1\n")
    found = the_one(definitions.check_host_settings(fakes.host))
    assert found.what.startswith(f"{fakes.root}/etc/llamad/llamad.toml:2:")
    assert wrong(definitions.check(fakes.host, "phi4")) == []


def test_a_file_that_no_name_reaches(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    path = fakes.define("Phi 4", MODEL)
    found = the_one(definitions.check_host_settings(fakes.host))
    assert found.cure == f"mv -n '{path}' '{path.with_name('phi 4.toml')}'"


@pytest.mark.parametrize(
    ("installed", "command"),
    [({"setfacl", "chmod"}, "setfacl -m u:_llamad:x /srv"), ({"chmod"}, "chmod o+x /srv"), (set(), "")],
)
def test_the_first_command_of_an_advice_that_can_be_typed_here(installed: set[str], command: str) -> None:
    commands = FakeCommands()
    commands.installed = installed
    advice = "`setfacl -m u:_llamad:x /srv`, `chmod o+x /srv`, or move it"
    assert definitions.command_in(advice, commands) == command
    commands.installed = {"git"}
    assert definitions.command_in("run `git lfs pull` in that folder", commands) == ""


# -- the engine ----------------------------------------------------------------------------------------------------


def look(fakes: Fakes, text: str = MODEL + GPU) -> list[Finding | Unseen]:
    fakes.define("phi4", text)
    (loaded,) = fakes.host.usable()
    return list(engine.check(fakes.host, engine.target_of(fakes.host, loaded)))


def test_what_the_engine_sees_in_the_sandbox(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    (found,) = look(fakes)
    assert not isinstance(found, Unseen)
    assert (found.severity, found.what) == ("ok", "llama-server b11669 (cpu, vulkan) sees Vulkan0 in the sandbox")
    ((name, argv, env),) = fakes.sandbox.ran
    assert name == "phi4" and argv[-1] == "/srv/nosuch/m.gguf" and env["GGML_VK_VISIBLE_DEVICES"] == "0"


def test_without_root_it_says_what_it_did_not_see(tmp_path: Path) -> None:
    fakes = make_host(tmp_path, is_root=False)
    fakes.sandbox.is_the_units = False
    note, found = look(fakes)
    assert isinstance(note, Unseen) and "needs root" in note.what
    assert not isinstance(found, Unseen) and found.what.endswith("sees Vulkan0")


@pytest.mark.parametrize(
    ("card", "backends", "text", "severity", "says", "cure"),
    [
        (NVIDIA, {"cpu"}, MODEL, "error", "no backend for the NVIDIA GPU is installed, only: cpu",
         "apt-get install libggml0-backend-cuda"),
        (("0000:03:00.0", "0x1002", "amdgpu"), {"cpu"}, MODEL, "error", "no backend for the AMD GPU",
         "apt-get install libggml0-backend-vulkan mesa-vulkan-drivers"),
        (NVIDIA, {"cpu"}, f"{MODEL}[placement]\nallow_cpu = true\n", "warn", "no backend for the NVIDIA GPU",
         "apt-get install libggml0-backend-cuda"),
        (NVIDIA, {"cpu", "vulkan"}, MODEL, "error", "Vulkan driver is missing",
         "apt-get install mesa-vulkan-drivers vulkan-tools"),
        (NVIDIA, {"cpu", "cuda"}, MODEL, "error", "their own words",
         "systemd-run --pipe --wait --property=User=_llamad SERVER --list-devices"),
        (None, {"cpu"}, MODEL + GPU, "error", "asks for Vulkan", "apt-get install libggml0-backend-vulkan mesa-vulkan-drivers"),
    ],
)  # fmt: skip
def test_an_engine_that_sees_no_gpu(
    tmp_path: Path, card: tuple[str, str, str] | None, backends: set[str], text: str, severity: str, says: str, cure: str
) -> None:
    fakes = make_host(tmp_path)
    if card:
        fakes.gpu(*card)
    fakes.host.backends_of = lambda _server, _env: frozenset(backends)
    fakes.sandbox.answer = Answer(0, engine_says(devices=""))
    (found,) = look(fakes, text)
    assert not isinstance(found, Unseen)
    assert (found.severity, found.cure) == (severity, cure.replace("SERVER", f"{tmp_path}/llama-server"))
    assert says in found.why


def test_no_gpu_at_all(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.sandbox.answer = Answer(0, engine_says(devices=""))
    (found,) = look(fakes, MODEL)
    assert not isinstance(found, Unseen)
    assert "allow_cpu is not set" in found.what and found.cure == f"${{EDITOR:-editor}} {fakes.root}/etc/llamad/phi4.toml"
    fakes = make_host(tmp_path / "cpu")
    fakes.sandbox.answer = Answer(0, engine_says(devices=""))
    assert wrong(look(fakes, f"{MODEL}[placement]\nallow_cpu = true\n")) == []


def test_a_driver_that_compiles_dies_in_the_sandbox(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.sandbox.answer = Answer(0, engine_says(status=139))
    fakes.commands.units["llamad@phi4.service"] = {"MemoryDenyWriteExecute": "yes"}
    (found,) = look(fakes)
    assert not isinstance(found, Unseen)
    assert "signal 11" in found.what
    assert found.cure.startswith("install -D -m 644 /usr/share/doc/llamad/examples/drop-in-software-vulkan.conf")
    example = Path(__file__).parents[2] / "docs/examples/drop-in-software-vulkan.conf"
    assert example.is_file()


def test_an_old_engine_and_one_that_is_none(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.sandbox.answer = Answer(0, engine_says(help_=HELP.replace("--fit", "--feet")))
    found = the_one(look(fakes))
    assert found.severity is Severity.WARN and "is old: it lacks --fit" in found.what
    fakes.sandbox.answer = Answer(0, engine_says(help_="usage: ls [OPTION]\n"))
    found = the_one(look(fakes))
    assert found.severity is Severity.ERROR and "is no llama-server" in found.what


@pytest.mark.parametrize("answer", [None, Answer(1, "", "Failed to start transient service unit\n"), Answer(0, "\0garbage")])
def test_an_engine_of_which_nothing_comes(tmp_path: Path, answer: Answer | None) -> None:
    fakes = make_host(tmp_path)
    fakes.sandbox.answer = answer
    found = the_one(look(fakes))
    assert "cannot be run in the sandbox of llamad@phi4.service" in found.what


def test_no_engine(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.define("llamad", '[host]\nserver = "/nosuch/llama-server"\n')
    found = the_one(look(fakes))
    assert found.what == "cannot find /nosuch/llama-server"
    settings = fakes.root / "etc/llamad/llamad.toml"
    assert found.cure in (  # with Debian's installed it is used instead
        "apt-get install llama.cpp-tools", f"sed -i 's|^server *= *./nosuch/llama\\-server.|# &|' {settings}"
    )  # fmt: skip


def test_the_sandbox_gets_the_environment_by_no_command_line(tmp_path: Path) -> None:
    """What an admin puts into `[environment]` may be secret, and root's systemd-run must not load by it."""
    real = shutil.which("env")
    assert real

    from llamad.service.doctor.host import SystemCommands

    wrapped: list[str] = []

    def wrap(name: str, argv: object, deadline_s: float) -> list[str]:
        assert isinstance(argv, list)
        wrapped.extend(argv)
        return [*argv]

    sandbox = UnitSandbox(wrap, SystemCommands())
    env = {"TOKEN": "s3cret 'x'\n$(touch /tmp/no)", "LD_PRELOAD_": "/x", "PATH": "/usr/bin:/bin", "x; exit 9; y": "x"}
    answer = sandbox.run("phi4", ["/bin/sh", "-c", 'printf %s "$TOKEN"'], env, 5)
    assert answer is not None and answer.text == env["TOKEN"]
    assert not any("s3cret" in word for word in wrapped)


def test_without_a_unit_the_engine_is_run_as_who_we_are(tmp_path: Path) -> None:
    answer = OwnSandbox().run("phi4", ["/bin/sh", "-c", "id -u; exit 3"], {"PATH": "/usr/bin:/bin"}, 10)
    assert answer is not None and answer.status == 3
    assert answer.text.strip() not in ("0", "") and (ME == 0 or answer.text.strip() == str(ME))
    assert OwnSandbox().run("phi4", ["/nosuch/x"], {}, 5) is None


def test_a_host_without_definitions_has_an_engine_too(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    target = engine.target_of_host(fakes.host)
    assert isinstance(target, Target)
    fakes.sandbox.answer = Answer(0, engine_says(devices=""))
    (found,) = engine.check(fakes.host, target)
    assert not isinstance(found, Unseen) and found.what.endswith("on the CPU")


# -- limits --------------------------------------------------------------------------------------------------------

DROP_IN = "/etc/systemd/system/llamad@phi4.service.d/own.conf"


def limited(fakes: Fakes, text: str = MODEL, *, drop_in: str = "", **properties: str) -> list[Finding]:
    fakes.define("phi4", text)
    if drop_in:
        fakes.tree.write(DROP_IN, f"[Service]\n{drop_in}\n")
        properties["DropInPaths"] = DROP_IN
    fakes.commands.units["llamad@phi4.service"] = properties
    (loaded,) = fakes.host.usable()
    return wrong(limits.check(fakes.host, loaded))


def planned(fakes: Fakes, total_mib: float) -> None:
    fakes.commands.say("llamad", text=json.dumps({"host": {"total_mib": total_mib}}))


def test_memory_that_may_be_locked(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    (found,) = limited(fakes, LimitMEMLOCK="65536", drop_in="LimitMEMLOCK=64K")
    assert found.severity is Severity.WARN and "only 64 KiB" in found.what
    assert found.cure == f"sed -i '/^ *LimitMEMLOCK=/d' {DROP_IN} && systemctl daemon-reload"
    fakes = make_host(tmp_path / "mlock")
    (found,) = limited(fakes, f'{MODEL}[placement]\nload_mode = "mlock"\n', LimitMEMLOCK="65536")
    assert found.severity is Severity.ERROR
    assert found.cure.startswith("mkdir -p /etc/systemd/system/llamad@phi4.service.d && printf '[Service]\\nLimitMEMLOCK=")
    command = found.cure.replace("/etc/systemd/system", str(tmp_path)).replace("systemctl daemon-reload", "true")
    subprocess.run(["/bin/sh", "-c", command], check=True)
    assert (tmp_path / "llamad@phi4.service.d/limits.conf").read_text() == "[Service]\nLimitMEMLOCK=infinity\n"
    assert found.cure in report_text(Report(root=True, findings=(found,), unseen=()))
    assert limited(make_host(tmp_path / "none"), LimitMEMLOCK="infinity") == []


@pytest.mark.parametrize(
    ("properties", "drop_in", "cure"),
    [
        ({"MemoryMax": "104857600"}, "MemoryMax=100M", f"sed -i '/^ *MemoryMax=/d' {DROP_IN} && systemctl daemon-reload"),
        ({"MemoryMax": "infinity", "MemoryHigh": "104857600"}, "",
         "systemctl set-property llamad@phi4.service MemoryMax=1536M MemoryHigh=infinity"),
        ({"MemoryMax": "infinity", "EffectiveMemoryMax": "104857600", "Slice": "small.slice"}, "",
         "systemctl set-property small.slice MemoryMax=1536M MemoryHigh=infinity"),
    ],
)  # fmt: skip
def test_memory_below_the_plan(tmp_path: Path, properties: dict[str, str], drop_in: str, cure: str) -> None:
    fakes = make_host(tmp_path)
    planned(fakes, 1000)
    fakes.tree.write("/proc/meminfo", "MemTotal:  33554432 kB\n")
    (found,) = limited(fakes, drop_in=drop_in, **properties)
    assert "100 MiB of memory are allowed, and the plan needs 1.0 GiB" in found.what
    assert found.cure == cure


def test_memory_above_the_plan_and_without_one(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    planned(fakes, 1000)
    assert limited(fakes, MemoryMax=str(2 << 30)) == []
    fakes = make_host(tmp_path / "refused")
    fakes.commands.say("llamad", status=69)
    fakes.define("phi4", MODEL)
    fakes.commands.units["llamad@phi4.service"] = {"MemoryMax": str(2 << 30)}
    (seen,) = limits.check(fakes.host, fakes.host.usable()[0])
    assert isinstance(seen, Unseen)


def test_where_nothing_is_limited_no_plan_is_made(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.tree.write("/proc/meminfo", "MemTotal:  1048576 kB\n")
    assert limited(fakes, MemoryMax="infinity", EffectiveMemoryMax=str(1 << 30), Slice="system.slice") == []
    assert not any(argv[0] == "llamad" for argv in fakes.commands.asked)


def test_threads_and_devices(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    text = "TasksMax=16\n PrivateDevices=yes\nDevicePolicy=strict"
    tasks = limited(fakes, drop_in=text, TasksMax="16", PrivateDevices="yes", DevicePolicy="strict")
    hidden = next(one for one in tasks if "hides GPUs" in one.what)
    assert hidden.cure == (
        f"sed -i '/^ *PrivateDevices=/d' {DROP_IN} && sed -i '/^ *DevicePolicy=/d' {DROP_IN} && systemctl daemon-reload"
    )
    assert any("only 16 threads" in one.what for one in tasks)
    fakes = make_host(tmp_path / "slice")
    (found,) = limited(fakes, TasksMax="4096", EffectiveTasksMax="8", Slice="small.slice")
    assert found.cure == "systemctl set-property small.slice TasksMax=4096"


# -- addresses -----------------------------------------------------------------------------------------------------

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def row(address: bytes, port: int, inode: int) -> str:
    numbers = struct.unpack(f"={len(address) // 4}I", address)
    local = "".join(f"{number:08X}" for number in numbers)
    return f"   0: {local}:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000 0 {inode} 1\n"


def process(fakes: Fakes, pid: int, inode: int, comm: str, cgroup: str) -> None:
    fakes.tree.lead(f"/proc/{pid}/fd/7", f"socket:[{inode}]")
    fakes.tree.write(f"/proc/{pid}/comm", f"{comm}\n")
    fakes.tree.write(f"/proc/{pid}/cgroup", f"0::{cgroup}\n")


LOCAL = bytes([127, 0, 0, 1])


@pytest.mark.parametrize(
    ("file", "address", "cgroup", "cure"),
    [
        ("tcp", LOCAL, "/user.slice/user-0.slice/session-1.scope", "kill 42"),
        ("tcp", bytes(4), "/system.slice/nginx.service", "systemctl disable --now nginx.service"),
        ("tcp", LOCAL, "/user.slice/user-1000.slice/user@1000.service/app.slice/ssh.service", "kill 42"),
        ("tcp", LOCAL, "/user.slice/user-1000.slice/user@1000.service/llamad@phi4.service", "kill 42"),
        ("tcp", LOCAL, "/system.slice/box.service/payload/x.service", "systemctl disable --now box.service"),
        ("tcp6", bytes(16), "/system.slice/llama-server.service", "systemctl disable --now llama-server.service"),
        ("tcp", LOCAL, "/system.slice/system-llamad.slice/llamad@qwen.service", "systemctl disable --now llamad@qwen.service"),
    ],
)  # fmt: skip
def test_who_has_the_port(tmp_path: Path, file: str, address: bytes, cgroup: str, cure: str) -> None:
    fakes = make_host(tmp_path)
    fakes.define("phi4", f'{MODEL}listen = "127.0.0.1:8081"\n')
    fakes.tree.write(f"/proc/net/{file}", HEAD + row(address, 8081, 99))
    process(fakes, 42, 99, "python3", cgroup)
    found = the_one(addresses.check(fakes.host))
    assert "127.0.0.1:8081 is taken by python3 (process 42" in found.what
    assert found.cure == cure


@pytest.mark.parametrize(
    ("pid", "cgroup", "address", "port"),
    [
        (42, "/system.slice/system-llamad.slice/llamad@phi4.service", LOCAL, 8081),
        (1, "/init.scope", LOCAL, 8081),  # systemd keeps the socket of a unit that is restarted
        (42, "/user.slice", LOCAL, 8082),
        (42, "/user.slice", bytes([127, 0, 0, 2]), 8081),
    ],
)
def test_the_port_is_free_or_ours(tmp_path: Path, pid: int, cgroup: str, address: bytes, port: int) -> None:
    fakes = make_host(tmp_path)
    fakes.define("phi4", f'{MODEL}listen = "127.0.0.1:8081"\n')
    fakes.commands.units["llamad@phi4.service"] = {"NFileDescriptorStore": "2"}
    fakes.tree.write("/proc/net/tcp", HEAD + row(address, port, 99))
    process(fakes, pid, 99, "llamad", cgroup)
    assert wrong(addresses.check(fakes.host)) == []


def test_the_routers_port_counts_where_it_is_meant_to_run(tmp_path: Path) -> None:
    fakes = make_host(tmp_path)
    fakes.tree.write("/proc/net/tcp", HEAD + row(LOCAL, 8080, 99))
    process(fakes, 42, 99, "nginx", "/system.slice/nginx.service")
    assert wrong(addresses.check(fakes.host)) == []
    fakes = make_host(tmp_path / "enabled")
    fakes.commands.units["llamad.service"] = {"UnitFileState": "enabled"}
    fakes.tree.write("/proc/net/tcp", HEAD + row(LOCAL, 8080, 99))
    process(fakes, 42, 99, "nginx", "/system.slice/nginx.service")
    assert the_one(addresses.check(fakes.host)).about == "router"


def test_a_model_without_an_address_that_only_the_router_serves_wants_no_port(tmp_path: Path) -> None:
    for name, state, clashes in (("idle", {}, 0), ("failed", {"ActiveState": "failed"}, 1)):
        fakes = make_host(tmp_path / name)
        fakes.define("phi4", MODEL)
        fakes.commands.units["llamad@phi4.service"] = state
        fakes.tree.write("/proc/net/tcp", HEAD + row(LOCAL, 8080, 99))
        process(fakes, 42, 99, "nginx", "/system.slice/nginx.service")
        assert len(wrong(addresses.check(fakes.host))) == clashes


def test_without_root_the_owner_is_not_seen(tmp_path: Path) -> None:
    fakes = make_host(tmp_path, is_root=False)
    fakes.define("phi4", f'{MODEL}listen = "127.0.0.1:8081"\n')
    fakes.tree.write("/proc/net/tcp", HEAD + row(LOCAL, 8081, 99))
    seen = [one for one in addresses.check(fakes.host) if isinstance(one, Unseen)]
    assert [one.what for one in seen] == ["who listens on 127.0.0.1:8081: it needs root"]
