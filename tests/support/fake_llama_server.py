#!/usr/bin/env python3
"""A stand-in for llama-server that fails on demand, for faults that the real one cannot be made to show.

It takes llama-server's arguments (only --host and -lv matter) and a scenario, JSON in $FAKE_LLAMA or in the
file `scenario.json` beside this program:

    lines        log lines to print on stderr while loading
    load_s       seconds until /health says 200 (default 0); "never" = never
    exit         leave with this status after the lines instead of serving; "SIGSEGV" etc. = by that signal
    babble       print lines without end as long as /health is not 200
    ignore_term  SIGTERM is ignored
    records      print one JSON record on stdout first, as a build that logs so
    after        lines to print half a second after becoming healthy
    flood        print this many lines after becoming healthy
    long_line    print one line of this many bytes
    binary       print a line of all byte values
    die_after    exit status 1 after this many POST requests were begun
    last_words   lines to print before that
    exit_after   leave in this other way then, as `exit`
    stream       number of SSE events of a streamed answer (default 3)
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

SCENARIO = json.loads(
    os.environ.get("FAKE_LLAMA") or (Path(__file__).parent / "scenario.json").read_text(encoding="utf-8")
)
STARTED = time.monotonic()
POSTS = [0]


def log(text: str) -> None:
    os.write(2, text.encode() + b"\n")


def healthy() -> bool:
    load_s = SCENARIO.get("load_s", 0)
    return load_s != "never" and time.monotonic() - STARTED >= load_s


def main() -> None:
    argv = sys.argv[1:]
    if "--version" in argv:
        print("version: 0.7.0 (build 11669, commit Fake)", file=sys.stderr)
        return
    if SCENARIO.get("ignore_term"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if SCENARIO.get("records"):
        os.write(1, b'{"type":"log","time":1,"level":"info","msg":"srv  llama_server: initializing ...\\n"}\n')
    for line in SCENARIO.get("lines", []):
        log(line)
    if "exit" in SCENARIO:
        leave(SCENARIO["exit"])
    path = argv[argv.index("--host") + 1]
    if os.path.exists(path):
        log("E srv  llama_server: couldn't bind HTTP server socket, hostname: " + path)
        sys.exit(1)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    threading.Thread(target=chatter, daemon=True).start()
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def leave(how: int | str) -> None:
    if isinstance(how, str):
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.Signals[how], signal.SIG_DFL)
        os.kill(os.getpid(), signal.Signals[how])
    os._exit(int(how))


def chatter() -> None:
    while not healthy():
        if SCENARIO.get("babble"):
            log("0.00.050.000 I still here")
        else:
            time.sleep(0.01)
    log("0.00.100.000 I srv  llama_server: model loaded")
    log(f"0.00.100.001 I srv  llama_server: listening on {sys.argv}")
    if SCENARIO.get("binary"):
        os.write(2, bytes(range(256)) * 4 + b"\n")
    if size := SCENARIO.get("long_line"):
        data = b"x" * size + b"\n"
        while data:
            data = data[os.write(2, data) :]
    if after := SCENARIO.get("after"):
        time.sleep(0.5)
        for line in after:
            log(line)
    for index in range(SCENARIO.get("flood", 0)):
        log(f"0.00.200.000 W flood: line {index} of a child that will not stop talking about itself")


def answer(connection: socket.socket) -> None:
    file = connection.makefile("rwb")
    while request := file.readline():
        method, target, _ = request.decode("latin-1").split()
        length = 0
        while (header := file.readline()) not in (b"\r\n", b""):
            if header.lower().startswith(b"content-length:"):
                length = int(header.split(b":")[1])
        body = file.read(length)
        if method == "POST":
            POSTS[0] += 1
            if POSTS[0] == SCENARIO.get("die_after"):
                for line in SCENARIO.get("last_words", []):
                    log(line)
                leave(SCENARIO.get("exit_after", 1))
        respond(file, target, json.loads(body) if body else {})
        file.flush()


def respond(file, target: str, body: dict) -> None:  # type: ignore[no-untyped-def]
    if target == "/health":
        status, content = ("200 OK", {"status": "ok"}) if healthy() else ("503 Loading", {"error": {"code": 503}})
    elif target == "/completion":
        top = [{"id": 5, "token": "x", "logprob": -1.5}]
        status = "200 OK"
        content = {"content": "x", "tokens_evaluated": len(body.get("prompt", [])), "tokens_predicted": 1,
                   "completion_probabilities": [{"id": 5, "token": "x", "logprob": -1.5, "top_logprobs": top}]}  # fmt: skip
    else:
        status, content = "200 OK", {"choices": [{"message": {"role": "assistant", "content": "hello"}}], "pid": os.getpid()}
    data = json.dumps(content).encode()
    file.write(f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)


if __name__ == "__main__":
    main()
