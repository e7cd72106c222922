"""Arguments for the recorded build and for older ones; device names as a child sees them; the environment."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from llamad.config.definition import Definition
from llamad.config.schema import read_json
from llamad.engine.build import Capabilities
from llamad.engine.capabilities import parse_capabilities
from llamad.engine.endpoint import TcpEndpoint
from llamad.engine.environment import child_environment
from llamad.engine.flags import can_ask, dry_run_args, logs_jsonl, server_args
from llamad.engine.names import child_names, is_host, plan_names, renamed, visible_uuids
from llamad.errors import ConfigError
from llamad.planning.plan import DevicePlan, Parts, Plan

DATA = Path(__file__).parents[1] / "data" / "engine"
NEW = parse_capabilities(
    "/usr/bin/llama-server",
    (DATA / "help_11669.txt").read_text(),
    (DATA / "version_11669.txt").read_text(),
    "k",
)
OLD_FLAGS = (
    "-m -c -np -b -ub -fa -ctk -ctv -ngl --device -sm -ts -mg --mlock --no-mmap --alias --host --metrics --slots"
    " --jinja --embedding --no-webui -t -tb -lv"
)
OLD = Capabilities(
    "/opt/llama-server",
    "6000 (abcdef)",
    6000,
    frozenset(shlex.split(OLD_FLAGS)),
    {"-sm": frozenset({"none", "layer", "row"})},
)


def device(name: str, uuid: str = "") -> DevicePlan:
    return DevicePlan(name, uuid, 16 << 30, 16 << 30, 41, Parts())


def plan(**changes: object) -> Plan:
    base = Plan(
        model="/srv/models/phi4.gguf",
        context_tokens=16384,
        context_train_tokens=16384,
        slots=4,
        unified_cache=True,
        cache_type_k="f16",
        cache_type_v="f16",
        batch_tokens=512,
        ubatch_tokens=512,
        flash_attention=True,
        layers=41,
        layers_total=41,
        split_mode="layer",
        main_device="Vulkan0",
        tensor_split=(),
        cache_ram_mib=2048,
        devices=(device("Vulkan0"),),
        host=Parts(),
        host_available_bytes=32 << 30,
        reasons=(),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def definition(**tables: object) -> Definition:
    return read_json(Definition, json.dumps({"model": "/srv/models/phi4.gguf", **tables}))


def args_of(a_plan: Plan, a_definition: Definition | None = None, caps: Capabilities = NEW, *written: str) -> list[str]:
    return server_args(
        a_plan, a_definition or definition(), caps,
        socket_path="/run/s.sock", alias_names=("phi4", "phi-4"), written=frozenset(written),
    )  # fmt: skip


def value(args: list[str], flag: str) -> str:
    assert args.count(flag) == 1, f"{flag} in {args}"
    return args[args.index(flag) + 1]


def test_the_whole_list_for_one_device() -> None:
    expected = (
        "-m /srv/models/phi4.gguf --alias phi4,phi-4 --host /run/s.sock"
        " -c 16384 -np 4 -kvu -b 512 -ub 512 -fa on -ctk f16 -ctv f16"
        " -ngl 999 --device Vulkan0 -sm layer --fit off --load-mode auto --cache-ram 2048"
        " --no-ui --offline --metrics --slots --jinja -lv 4 --log-jsonl --log-colors off"
    )
    assert args_of(plan()) == shlex.split(expected)


def test_a_server_that_owns_its_address_is_given_it_and_a_file_of_keys() -> None:
    def made(endpoint: str) -> list[str]:
        return server_args(plan(), definition(), NEW, socket_path=endpoint, alias_names=("phi4",))

    guarded = made(TcpEndpoint("::1", 8081, "secret", Path("/run/keys")))
    assert (value(guarded, "--host"), value(guarded, "--port")) == ("::1", "8081")
    assert value(guarded, "--api-key-file") == "/run/keys" and "secret" not in " ".join(guarded)
    assert "--api-key-file" not in made(TcpEndpoint("0.0.0.0", 8081))


def test_every_flag_is_one_that_the_recorded_help_lists() -> None:
    full = definition(
        placement={
            "load_mode": "mmap+mlock", "threads": 8, "threads_batch": 9,
            "numa": "isolate",
        },
        server={"ui": True, "jinja": False, "chat_template": "chatml", "embeddings": True, "metrics": True},
    )  # fmt: skip
    two = plan(devices=(device("Vulkan0"), device("Vulkan1")), tensor_split=(20, 21), slots=2, unified_cache=False)
    args = args_of(two, full)
    assert [item for item in args if item.startswith("-") and not NEW.has(item)] == []
    assert value(args, "-ts") == "20,21"
    assert value(args, "--device") == "Vulkan0,Vulkan1"
    assert "-no-kvu" in args and "-kvu" not in args and "--no-jinja" in args and "--ui" in args
    assert value(args, "--load-mode") == "mmap+mlock" and value(args, "-tb") == "9"


def test_partial_offload_and_cpu() -> None:
    assert value(args_of(plan(layers=30)), "-ngl") == "30"
    cpu = args_of(plan(devices=(), layers=0, main_device=""))
    assert value(cpu, "-ngl") == "0" and value(cpu, "--device") == "none" and "-sm" not in cpu


def test_split_none_names_the_main_device_by_its_place() -> None:
    chosen = plan(split_mode="none", main_device="CUDA3", devices=(device("CUDA1", "GPU-b"), device("CUDA3", "GPU-d")))
    args = args_of(chosen)
    assert value(args, "-sm") == "none" and value(args, "-mg") == "1" and value(args, "--device") == "CUDA0,CUDA1"


def test_remote_devices_are_made_known_before_they_are_chosen_and_only_where_they_are_used() -> None:
    remote = definition(placement={"rpc": ("10.0.0.2:50052", "10.0.0.3:50052")})
    args = args_of(plan(devices=(device("RPC1", "rpc:10.0.0.3:50052/0"),), main_device="RPC1"), remote)
    assert value(args, "--rpc") == "10.0.0.2:50052,10.0.0.3:50052" and value(args, "--device") == "RPC1"
    assert args.index("--rpc") < args.index("--device")
    assert "--rpc" not in args_of(plan(), remote), "who connects keeps others out"
    assert "--rpc" not in args_of(plan(devices=(device("RPC0"),), main_device="RPC0"), definition()), "only asked about"


def test_extra_args_come_last_and_as_they_are() -> None:
    args = args_of(plan(), definition(server={"extra_args": ("--cors-origins", "x")}))
    assert args[-2:] == ["--cors-origins", "x"]


def test_an_older_build_gets_its_own_spellings() -> None:
    args = args_of(plan(slots=1), definition(placement={"load_mode": "mlock"}, server={"embeddings": True}), OLD)
    assert "-fa" in args and args[args.index("-fa") + 1].startswith("-")
    assert {"--no-mmap", "--mlock", "--no-webui", "--embedding"} <= set(args)
    assert not {"--fit", "--load-mode", "--cache-ram", "--log-jsonl", "-lv", "--offline", "-kvu"} & set(args)
    assert not can_ask(OLD) and not logs_jsonl(OLD) and can_ask(NEW) and logs_jsonl(NEW)


@pytest.mark.parametrize(
    ("a_plan", "tables", "flag", "purpose"),
    [
        (plan(), {}, "-kvu", "one cache shared by the slots"),
        (plan(slots=1), {"placement": {"load_mode": "dio"}}, "--direct-io", "load_mode"),
        (plan(slots=1, host_experts=4), {}, "--n-cpu-moe 4", "n_cpu_moe"),
        (plan(slots=1, host_ffn=3), {}, "--n-cpu-ffn 3", "n_cpu_ffn"),
        (plan(slots=1), {"server": {"reranking": True}}, "--reranking", "reranking"),
        (plan(slots=1, split_mode="tensor"), {}, "-sm tensor", "split_mode"),
    ],
)
def test_a_promise_that_the_build_cannot_keep_is_named(
    a_plan: Plan, tables: dict[str, object], flag: str, purpose: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        args_of(a_plan, definition(**tables), OLD)
    assert f"does not offer {flag}" in caught.value.what and purpose in caught.value.why
    assert "6000 (abcdef)" in caught.value.what


def test_a_default_that_the_build_lacks_is_left_out_but_a_written_one_is_refused() -> None:
    bare = replace(OLD, flags=OLD.flags - {"--metrics"})
    assert "--metrics" not in args_of(plan(slots=1), None, bare)
    with pytest.raises(ConfigError, match="does not offer --metrics"):
        args_of(plan(slots=1), definition(server={"metrics": True}), bare, "server.metrics")


def test_a_cache_type_that_the_build_does_not_list() -> None:
    with pytest.raises(ConfigError, match="does not offer -ctk q3_k"):
        args_of(plan(cache_type_k="q3_k"))


def test_the_dry_run_differs_in_fit_socket_and_alias_only() -> None:
    dry = dry_run_args(plan(), definition(), NEW, socket_path="/tmp/dry.sock")
    assert value(dry, "--fit") == "on" and value(dry, "--host") == "/tmp/dry.sock"
    assert set(args_of(plan())) - set(dry) == {"--alias", "phi4,phi-4", "/run/s.sock"}
    with pytest.raises(ConfigError, match="does not offer --fit on"):
        dry_run_args(plan(slots=1), definition(), OLD, socket_path="/tmp/dry.sock")


def test_names_follow_the_visible_gpus() -> None:
    devices = (device("CUDA2", "GPU-c"), device("Vulkan1"), device("CUDA0", "MIG-a"))
    assert visible_uuids(devices) == ("GPU-c", "MIG-a")
    assert child_names(devices) == {"CUDA2": "CUDA0", "Vulkan1": "Vulkan1", "CUDA0": "CUDA1"}
    assert renamed({"CUDA1": 5, "CPU": 6}, plan_names(devices)) == {"CUDA0": 5, "CPU": 6}
    assert visible_uuids([device("CUDA2")]) is None and child_names([device("CUDA2")]) == {"CUDA2": "CUDA2"}
    assert visible_uuids([device("Vulkan0")]) == () == visible_uuids([])


def test_host_buffers() -> None:
    assert all(map(is_host, ("CPU", "CPU_Mapped", "CPU_REPACK", "CUDA_Host", "Vulkan_Host", "ROCm_Host", "Host")))
    assert not any(map(is_host, ("CUDA0", "Vulkan0", "ROCm1", "RPC0", "SYCL0", "MTL0")))


def test_environment_is_built_from_nothing() -> None:
    outside = {
        "PATH": "/usr/bin",
        "TZ": "UTC",
        "LD_PRELOAD": "/evil.so",
        "LLAMA_ARG_CTX_SIZE": "1",
        "HOME": "/root",
    }
    env = child_environment({"GGML_VK_VISIBLE_DEVICES": "0"}, Path("/var/cache/llamad/m"), None, outside)
    assert (env["PATH"], env["TZ"], env["HOME"]) == ("/usr/bin", "UTC", "/var/cache/llamad/m")
    assert env["GGML_VK_VISIBLE_DEVICES"] == "0" and env["GGML_NO_BACKTRACE"] == "1"
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID" and "CUDA_VISIBLE_DEVICES" not in env
    assert not {"LD_PRELOAD", "LLAMA_ARG_CTX_SIZE"} & set(env)
    caches = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MESA_SHADER_CACHE_DIR", "CUDA_CACHE_PATH", "LLAMA_CACHE")
    assert all(env[name].startswith("/var/cache/llamad/m") for name in caches)


def test_environment_shows_the_planned_gpus_only() -> None:
    written = {"CUDA_VISIBLE_DEVICES": "0,1", "TZ": "Europe/Berlin"}
    shown = child_environment(written, Path("/c"), ("GPU-b", "GPU-a"), {})
    assert shown["CUDA_VISIBLE_DEVICES"] == "GPU-b,GPU-a" and shown["TZ"] == "Europe/Berlin"
    assert shown["PATH"].endswith("/usr/bin:/sbin:/bin")
    assert child_environment(written, Path("/c"), None, {})["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert child_environment({}, Path("/c"), (), {})["CUDA_VISIBLE_DEVICES"] == "-1"
