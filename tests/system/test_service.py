"""One model from `llamad add` to answers through the real OpenAI client."""

from __future__ import annotations

import json
import re
from pathlib import Path

from openai import OpenAI

from tests.system.conftest import ETC, Bed, get, run


def start_tiny(bed: Bed) -> str:
    run("llamad", "add", "tiny", str(bed.tiny), "--no-plan")
    text = (ETC / "tiny.toml").read_text()
    port = re.search(r"127\.0\.0\.1:(\d+)", text)
    assert port
    (ETC / "tiny.toml").write_text(text + '\n[environment]\nGGML_VK_VISIBLE_DEVICES = "0"\n')
    bed.ctl("enable", "--now", "llamad@tiny")
    return f"http://127.0.0.1:{port[1]}"


def test_enable_now_returns_when_a_token_was_generated_on_the_device(bed: Bed) -> None:
    url = start_tiny(bed)
    assert bed.show("llamad@tiny", "ActiveState") == "active"
    assert bed.show("llamad@tiny", "SubState") == "running"
    ready = bed.events("tiny", "ready")
    assert len(ready) == 1 and ready[0]["LLAMAD_DEVICE"] == "Vulkan0"
    lines = [r["MESSAGE"] for r in bed.journal("SYSLOG_IDENTIFIER=llama-server@tiny")]
    assert any("Vulkan0 model buffer size" in str(line) for line in lines)
    status = bed.ctl("status", "--no-pager", "llamad@tiny").stdout
    found = re.search(r'Status: "ready: ctx (\d+) of (\d+), (\d+)/(\d+) layers on Vulkan0, ([\d.]+) of ([\d.]+) GiB', status)
    assert found, status
    assert found[1] == found[2] and found[3] == found[4]
    # The warm-up was the only request before READY: its tokens are counted by the server itself.
    code, metrics = get(f"{url}/metrics")
    assert code == 200
    tokens = re.search(r'llamacpp_tokens_predicted_total\{model="tiny"\} (\d+)', metrics)
    assert tokens and int(tokens[1]) >= 1
    prompt = re.search(r'llamacpp_prompt_tokens_total\{model="tiny"\} (\d+)', metrics)
    assert prompt and int(prompt[1]) >= 512


def test_the_openai_client_gets_plain_and_streamed_answers(bed: Bed) -> None:
    url = start_tiny(bed)
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    question = [{"role": "user", "content": "Say something"}]
    answer = client.chat.completions.create(model="tiny", messages=question, max_tokens=12)
    assert answer.choices[0].message.content
    assert answer.usage and answer.usage.completion_tokens == 12
    stream = client.chat.completions.create(model="tiny", messages=question, max_tokens=12, stream=True)
    events = list(stream)
    assert "".join(e.choices[0].delta.content or "" for e in events if e.choices)
    assert any(e.choices and e.choices[0].finish_reason == "length" for e in events)
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert get(f"{url}/health") == (200, {"status": "ok"})


def test_status_list_show_and_plan_need_no_root(bed: Bed) -> None:
    start_tiny(bed)
    as_nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]
    status = json.loads(run(*as_nobody, "llamad", "status", "--json").stdout)
    entry = next(m for m in status["models"] if m["name"] == "tiny")
    assert entry["state"] == "ready" and entry["devices"][0]["name"] == "Vulkan0"
    assert "tiny" in run(*as_nobody, "llamad", "status").stdout
    assert "tiny" in run(*as_nobody, "llamad", "list").stdout
    assert str(ETC / "tiny.toml") in run(*as_nobody, "llamad", "show", "tiny").stdout


def test_plan_as_root_runs_the_engine_in_the_sandbox(bed: Bed, tmp_path: Path) -> None:
    start_tiny(bed)
    bed.ctl("stop", "llamad@tiny")
    run("llamad", "forget", "tiny")
    trace = tmp_path / "exec"
    plan = json.loads(
        run("strace", "-f", "-qq", "-e", "trace=execve", "-o", str(trace), "llamad", "plan", "--json", "tiny").stdout
    )
    assert plan["source"] == "asked"
    assert plan["devices"][0]["name"] == "Vulkan0"
    assert "llama-server" not in re.sub(r"^.*(systemd-run|systemctl).*$", "", trace.read_text(), flags=re.M)
    text = run("llamad", "plan", "tiny").stdout
    assert "Vulkan0" in text and "weights" in text and "context" in text


def test_the_plan_is_what_the_unit_runs(bed: Bed) -> None:
    start_tiny(bed)
    plan = json.loads(run("llamad", "plan", "--json", "tiny").stdout)
    child = bed.child_pid("tiny")
    argv = Path(f"/proc/{child}/cmdline").read_text().rstrip("\0").split("\0")[1:]
    planned = list(plan["args"])
    at = argv.index("--slot-save-path")  # a folder of the unit's own for a reload: no part of the plan
    del argv[at : at + 2]
    for words in (argv, planned):  # the prompt cache is planned on the host memory of the moment
        words[words.index("--cache-ram") + 1] = "N"
    assert argv == planned


def test_misplaced_weights_never_become_ready(bed: Bed) -> None:
    """An engine that puts a layer on the CPU behind the plan's back."""
    fake = Path("/usr/local/bin/llama-server-misplacing")
    fake.write_text(
        '#!/bin/sh\ncase " $* " in *" --fit off "*) exec /usr/bin/llama-server "$@" -ot "blk\\.1\\..*=CPU";; esac\n'
        'exec /usr/bin/llama-server "$@"\n'
    )
    fake.chmod(0o755)
    (ETC / "llamad.toml").rename(ETC / "llamad.toml.saved")
    try:
        (ETC / "llamad.toml").write_text(f'[host]\nserver = "{fake}"\n')
        bed.define("tiny")
        assert bed.ctl("start", "llamad@tiny", check=False, timeout=60).returncode != 0
        mismatch = bed.events("tiny", "placement-mismatch")
        assert mismatch and "Vulkan0" in mismatch[0]["MESSAGE"] and "planned" in mismatch[0]["MESSAGE"]
        assert not bed.events("tiny", "ready")
        assert bed.show("llamad@tiny", "ExecMainStatus") == "69"
    finally:
        bed.ctl("stop", "llamad@tiny", check=False)
        (ETC / "llamad.toml.saved").rename(ETC / "llamad.toml")
        fake.unlink()
