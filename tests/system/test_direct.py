"""`front = "direct"`: llama-server itself answers at the address, and all the rest of the service is as ever."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from tests.system.conftest import ETC, Bed, get, post, run, wait_for

KEY = "sk-for-clients-alone"
HEAD = 'front = "direct"\napi_keys_file = "/etc/llamad/d.keys"'
PLACE = "[placement]\nallow_cpu = true\ncontext = 2048\nparallel = 1\n"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


def start(bed: Bed) -> str:
    keys = ETC / "d.keys"
    keys.write_text(KEY + "\n")
    keys.chmod(0o644)
    url = bed.define("direct", head=HEAD, extra=PLACE, vulkan=False)
    bed.ctl("start", "llamad@direct")
    return url


def test_clients_are_with_llama_server_its_keys_are_asked_for_and_a_restart_keeps_both(bed: Bed) -> None:
    url = start(bed)
    child, port = bed.child_pid("direct"), url.rpartition(":")[2]
    assert f"pid={child}," in run("ss", "-Hltnp", f"sport = :{port}").stdout
    asked = {"prompt": "hello", "n_predict": 4}
    assert post(f"{url}/completion", asked)[0] == 401
    assert post(f"{url}/completion", asked, headers=AUTHORIZED)[0] == 200
    command = Path(f"/proc/{child}/cmdline").read_text()
    file = command.split("\0")[command.split("\0").index("--api-key-file") + 1]
    own = Path(file).read_text().splitlines()[0]
    assert KEY not in command and own not in command and Path(file).stat().st_mode & 0o777 == 0o600
    assert KEY not in json.dumps(bed.journal()) and own not in json.dumps(bed.journal())

    run("kill", "-KILL", str(child))
    wait_for(lambda: bed.child_pid("direct") not in (0, child), "another llama-server")
    wait_for(lambda: answered(f"{url}/completion", asked), "it answers")
    assert bed.show("llamad@direct", "NRestarts") == "0"
    socket = "/run/llamad/model/direct/router.sock"
    through = run("curl", "-sS", "--unix-socket", socket, "-H", f"Authorization: Bearer {KEY}", "http://x/completion",
                  "-d", json.dumps(asked))  # fmt: skip
    assert json.loads(through.stdout)["tokens_predicted"] == 4


def answered(url: str, body: object) -> bool:
    try:
        return post(url, body, headers=AUTHORIZED)[0] == 200
    except OSError:
        return False


def test_a_changed_context_waits_for_a_stream_and_who_owns_the_address_is_settled(bed: Bed) -> None:
    url = start(bed)
    got: list[str] = []

    def long() -> None:
        body = {"prompt": "hello", "n_predict": 200, "ignore_eos": True}
        got.append(post(f"{url}/completion", body, timeout=110, headers=AUTHORIZED)[1]["content"])

    with_server = threading.Thread(target=long)
    with_server.start()
    wait_for(lambda: any(slot["is_processing"] for slot in get(f"{url}/slots", headers=AUTHORIZED)[1]), "it generates")
    bed.define("direct", head=HEAD, extra=PLACE.replace("2048", "1024"), vulkan=False)
    bed.ctl("reload", "llamad@direct")
    with_server.join()
    assert len(got) == 1 and got[0]
    wait_for(lambda: "ctx 1024" in bed.show("llamad@direct", "StatusText"), "the new context")
    assert answered(f"{url}/completion", {"prompt": "hello", "n_predict": 4})

    bed.define("direct", head=HEAD.replace("direct", "relay", 1), extra=PLACE, vulkan=False)
    bed.ctl("reload", "llamad@direct", check=False)
    wait_for(lambda: "systemctl restart llamad@direct" in bed.show("llamad@direct", "StatusText"), "told what it takes")
    assert answered(f"{url}/completion", {"prompt": "hello", "n_predict": 4})
    bed.ctl("restart", "llamad@direct")
    assert f"pid={bed.main_pid('direct')}," in run("ss", "-Hltnp", f"sport = :{url.rpartition(':')[2]}").stdout
    assert answered(f"{url}/completion", {"prompt": "hello", "n_predict": 4})
