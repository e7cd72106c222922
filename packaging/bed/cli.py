"""The command line of the test bed. Words in, calls, exit status out."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bed import build, container, demo, files, host, suite
from bed.report import BedError, say

CHECKOUT = Path(__file__).resolve().parents[2]

_EPILOG = f"""\
The bed is a Debian of its own: an unpacked root in {build.CACHE}, booted in a container by
systemd-nspawn. Whatever happens inside is in memory and gone at its end. This checkout is at /src, read-only.
{host.MIRROR_VARIABLE} names the Debian mirror to build from, if the machine's own sources do not.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="packaging/testbed",
        description="A booted Debian with systemd and a real llama-server, to try llamad in.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--name", default=container.DEFAULT_NAME, help="which bed, where there are several")
    inside = argparse.ArgumentParser(add_help=False)
    inside.add_argument("--user", default="root", help="run as this user of the bed")
    inside.add_argument("--chdir", default="/", metavar="DIR", help="start in this folder of the bed")
    inside.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="-- CMD", help="the command and its arguments"
    )

    verb = verbs.add_parser("build", help="build the root if it is not built yet")
    verb.add_argument("--fresh", action="store_true", help="build it again from today's Debian")
    verbs.add_parser("run", parents=[inside], help="boot a bed, run a command in it, end it")
    verbs.add_parser("boot", parents=[named], help="boot a bed that stays up")
    verbs.add_parser("exec", parents=[named, inside], help="run a command in it; gives its exit status")
    verbs.add_parser("shell", parents=[named], help="a root shell in it")
    for copying, way in (("push", "into"), ("pull", "out of")):
        verb = verbs.add_parser(copying, parents=[named], help=f"copy a file or a folder {way} it")
        verb.add_argument("source", metavar="SRC")
        verb.add_argument("target", metavar="DST")
    verbs.add_parser("down", parents=[named], help="end it")
    verbs.add_parser("status", help="what is built and what is up; exit status 3 if no bed is up")
    verbs.add_parser("selftest", help="check the test bed itself: killed runs leave nothing, and so on")
    suite.add_arguments(verbs.add_parser("test", allow_abbrev=False, help="what packaging/test does"))
    verbs.add_parser("demo", help="what packaging/demo does")
    return parser


def main() -> int:
    """Do what the command line says; the exit status."""
    parser = _parser()
    words, others = parser.parse_known_args()
    if others and words.verb != "test":
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    words.for_pytest = others
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    try:
        host.require_root(
            f"packaging/{words.verb if words.verb in ('test', 'demo') else 'testbed ' + words.verb}"
        )
        return _do(words)
    except BedError as error:
        print(f"packaging/testbed: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _end(number: int, _: FrameType | None) -> NoReturn:
    print(f"ended by {signal.Signals(number).name}", file=sys.stderr)
    raise SystemExit(128 + number)


def _do(words: argparse.Namespace) -> int:
    if words.verb == "build":
        build.build(fresh=words.fresh)
    elif words.verb == "run":
        return _run(words)
    elif words.verb == "boot":
        _boot(words.name)
    elif words.verb == "exec":
        bed = container.Bed(words.name)
        return bed.call(_command(words), user=words.user, folder=words.chdir)
    elif words.verb == "shell":
        return container.Bed(words.name).call(["bash", "--login"], folder="/root")
    elif words.verb == "push":
        files.push(container.Bed(words.name), Path(words.source), words.target)
    elif words.verb == "pull":
        files.pull(container.Bed(words.name), words.source, Path(words.target))
    elif words.verb == "down":
        container.remove_stale() if not container.Bed(words.name).end() else None
    else:
        return _do_more(words)
    return 0


def _do_more(words: argparse.Namespace) -> int:
    if words.verb == "status":
        return _status()
    if words.verb == "selftest":
        return _selftest()
    if words.verb == "test":
        return suite.run(words, words.for_pytest, source=CHECKOUT)
    return demo.run(source=CHECKOUT)


def _command(words: argparse.Namespace) -> list[str]:
    command: list[str] = words.command[1:] if words.command[:1] == ["--"] else words.command
    if not command:
        msg = f"say which command: packaging/testbed {words.verb} -- CMD ARGS"
        raise BedError(msg, exit_status=64)
    return command


def _run(words: argparse.Namespace) -> int:
    command = _command(words)
    root = build.build()
    say("booting the bed")
    with container.booted(root=root, source=CHECKOUT) as bed:
        say("the bed is up")
        return bed.call(command, user=words.user, folder=words.chdir)


def _boot(name: str) -> None:
    root = build.build()
    say("booting the bed")
    container.boot(name, root=root, source=CHECKOUT, dies_with_us=False)
    say("the bed is up; packaging/testbed shell goes in, packaging/testbed down ends it")


def _status() -> int:
    root = build.cached_root()
    print(f"built: {root if root.is_dir() else 'no (packaging/testbed build)'}")
    up = container.names() if container.STATE.is_dir() else []
    for name in up:
        bed = container.Bed(name)
        since_s = time.time() - bed.facts()["began"]
        _, state = bed.output(["systemctl", "is-system-running"])
        print(f"up: {name}, {state.strip()}, for {since_s:.0f} s, systemd is process {bed.init_pid()} here")
    if not up:
        print("up: none")
    return 0 if up else 3


def _selftest() -> int:
    build.build()
    tests = CHECKOUT / "tests/bed"
    python = shutil.which(sys.executable) or sys.executable
    command = [python, "-B", "-m", "unittest", "discover", "--verbose", "--start-directory", str(tests)]
    return subprocess.run(command, cwd=tests, env=dict(os.environ), check=False).returncode
