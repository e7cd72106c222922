"""A llama-server that takes the bytes of its plan from the driver of `gpu_host.py`, piece by piece, and then serves.

The plan is in the file `plan.json` beside its socket. Asked for its breakdown (`--fit on`) it makes a context and has
no answer.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, TextIO

PIECES = 6


def main() -> None:
    argv = sys.argv[1:]
    path = Path(argv[argv.index("--host") + 1])
    model = Path(argv[argv.index("-m" if "-m" in argv else "--model") + 1])
    name = path.parent.parent.name
    uuids = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(model.parent / "driver.sock"))
        with connection.makefile("rw") as driver:
            if argv[argv.index("--fit") + 1] == "on":
                for uuid in uuids:
                    take(driver, name, uuid, 100 << 20)
                time.sleep(0.05)
                sys.exit(1)
            load(driver, name, uuids, json.loads((path.parent / "plan.json").read_text()))
            os.environ["FAKE_LLAMA"] = json.dumps({"lines": []})
            sys.path.insert(0, str(Path(__file__).parent))
            import fake_llama_server

            fake_llama_server.main()


def take(driver: TextIO, name: str, uuid: str, size: int) -> None:
    driver.write(f"{name} {uuid} {size}\n")
    driver.flush()
    if driver.readline() != "ok\n":
        log(f"E ggml_backend_cuda_buffer_type_alloc_buffer: allocating {size >> 20} MiB on device 0: out of memory")
        sys.exit(1)


def load(driver: TextIO, name: str, uuids: list[str], plan: dict[str, Any]) -> None:
    for uuid, parts in zip(uuids, plan["devices"], strict=True):
        take(driver, name, uuid, parts["overhead"])
    for kind, by in (("model", "load_tensors"), ("KV", "llama_kv_cache"), ("compute", "sched_reserve")):
        for number, (uuid, parts) in enumerate(zip(uuids, plan["devices"], strict=True)):
            for _ in range(PIECES):
                time.sleep(plan["pause_s"])
                take(driver, name, uuid, parts[kind] // PIECES)
            log(f"0.00.100.000 I {by}:        CUDA{number} {kind} buffer size =   {parts[kind] / (1 << 20):.2f} MiB")


def log(text: str) -> None:
    os.write(2, text.encode() + b"\n")


if __name__ == "__main__":
    main()
