"""packaging/demo: from a clone to an answered chat completion, every command shown as an admin would type it."""

from __future__ import annotations

from pathlib import Path

from bed import build, container, package
from bed.container import Bed
from bed.report import BedError, elapsed_s, say

_MODEL = "/var/lib/llamad/models/tiny.gguf"
_DROP_IN = "/etc/systemd/system/llamad@.service.d/llvmpipe.conf"
_URL = "http://127.0.0.1:8081"
_QUESTION = '{"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 48}'
_SHOW_ANSWER = "import json, sys; print(json.load(sys.stdin)['choices'][0]['message']['content'])"


def run(*, source: Path) -> int:
    """Build, install, serve, ask. 0 if the model answered; the container is gone in any case."""
    root = build.build()
    say("booting a Debian of its own, without a network")
    with container.booted(root=root, source=source) as bed:
        say("building the package")
        deb = package.provide(bed, source)
        say("here we go: what follows is typed as root in that Debian\n")
        _prepare(bed, deb)
        answer = _serve(bed)
    print(f"\nllamad@tiny answered: {answer}")
    print(
        "(The weights are random numbers: gibberish is the right answer. It was made by the real llama-server.)"
    )
    print(f"packaging/demo: done in {elapsed_s():.0f} s, nothing is left running", flush=True)
    return 0


def _prepare(bed: Bed, deb: str) -> None:
    _type(bed, f"apt install {deb}", really=" ".join(package.install_command(deb)) + " | tail -n 3")
    _note("a model of 5 MB with random weights, and a software Vulkan device in the place of a GPU")
    _type(bed, f"python3 -m tests.support.models tiny {_MODEL}", folder="/src")
    _type(bed, f"llamad add tiny {_MODEL} --no-plan")
    _type(bed, "printf '\\n[environment]\\nGGML_VK_VISIBLE_DEVICES = \"0\"\\n' >> /etc/llamad/tiny.toml")
    _note(
        "the software device compiles code at run time, which the unit forbids: a GPU needs no such drop-in"
    )
    _type(bed, f"mkdir -p {Path(_DROP_IN).parent}")
    _type(bed, f"printf '[Service]\\nMemoryDenyWriteExecute=no\\n' > {_DROP_IN}; systemctl daemon-reload")
    _note("what it would do, byte by byte, before anything is started")
    _type(bed, "llamad plan tiny")


def _serve(bed: Bed) -> str:
    _note("this returns when the model has generated a token on the device")
    _type(bed, "systemctl enable --now llamad@tiny")
    _type(bed, "systemctl status --no-pager --lines=5 llamad@tiny")
    ask = f"curl --silent --fail-with-body {_URL}/v1/chat/completions --json '{_QUESTION}'"
    _type(bed, ask, really=f"{ask} > /run/answer; status=$?; cat /run/answer; echo; exit $status")
    status, answer = bed.output(["sh", "-c", f'python3 -c "{_SHOW_ANSWER}" < /run/answer'])
    if status != 0 or not answer.strip():
        msg = f"that is no chat completion: {answer}"
        raise BedError(msg)
    return answer.strip()


def _note(text: str) -> None:
    print(f"\n# {text}", flush=True)


def _type(bed: Bed, shown: str, *, really: str = "", folder: str = "/") -> None:
    """Show a command; run it, or `really`, its quieter form. Raises BedError, after the journal's end, if it fails."""
    print(f"\n$ {shown}", flush=True)
    if bed.call(["bash", "-o", "pipefail", "-c", really or shown], folder=folder) != 0:
        _, journal = bed.output(["journalctl", "--boot", "--no-pager", "--lines=40", "--unit=llamad@tiny"])
        print(f"\n{journal}")
        msg = f"the demo stops here, this failed: {shown}"
        raise BedError(msg)
