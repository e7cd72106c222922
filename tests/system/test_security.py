"""The sandbox's score, and keys that never show."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from tests.system.conftest import DROP_IN, ETC, Bed, get, post, run


def test_exposure_of_the_shipped_unit(bed: Bed) -> None:
    bed.define("tiny")
    DROP_IN.rename(DROP_IN.with_suffix(".off"))
    try:
        run("systemctl", "daemon-reload")
        run("systemd-analyze", "security", "--threshold=15", "--no-pager", "llamad@tiny")
    finally:
        DROP_IN.with_suffix(".off").rename(DROP_IN)
        run("systemctl", "daemon-reload")
    run("systemd-analyze", "security", "--threshold=15", "--no-pager", "llamad@tiny")


def test_keys_guard_the_model_and_never_show(bed: Bed) -> None:
    key = "k" + secrets.token_hex(24)
    store = Path("/etc/credstore/llamad.api-key.tiny")
    store.parent.mkdir(mode=0o700, exist_ok=True)
    store.write_text(key + "\n")
    store.chmod(0o600)
    try:
        url = bed.define("tiny")
        bed.ctl("start", "llamad@tiny")
        body = {"prompt": [10, 11], "n_predict": 1}
        assert post(f"{url}/completion", body)[0] == 401
        assert post(f"{url}/completion", body, headers={"Authorization": "Bearer wrong"})[0] == 401
        assert post(f"{url}/completion", body, headers={"Authorization": f"Bearer {key}"})[0] == 200
        assert get(f"{url}/v1/models")[0] == 401
        assert get(f"{url}/health")[0] == 200
        for pid in (p for p in os.listdir("/proc") if p.isdigit()):
            for file in ("cmdline", "environ"):
                try:
                    content = Path(f"/proc/{pid}/{file}").read_bytes()
                except OSError:
                    continue
                assert key.encode() not in content, f"/proc/{pid}/{file}"
        run("journalctl", "--sync")
        assert key not in run("journalctl", "-b", "-o", "json", "--no-pager", "-a").stdout
        assert key not in run("grep", "-rs", key, "/run/llamad", "/var/lib/llamad/state", "/var/cache/llamad", check=False).stdout
    finally:
        store.unlink()


def test_keys_from_a_file_are_read_again_at_reload(bed: Bed) -> None:
    keys = ETC / "tiny.keys"
    keys.write_text("first\n")
    run("chown", "_llamad", str(keys))
    keys.chmod(0o600)
    url = bed.define("tiny", head=f'api_keys_file = "{keys}"')
    bed.ctl("start", "llamad@tiny")
    assert get(f"{url}/v1/models", headers={"Authorization": "Bearer first"})[0] == 200
    keys.write_text("second\n")
    bed.ctl("reload", "llamad@tiny")
    assert get(f"{url}/v1/models", headers={"Authorization": "Bearer first"})[0] == 401
    assert get(f"{url}/v1/models", headers={"Authorization": "Bearer second"})[0] == 200


def test_sockets_and_state_are_private(bed: Bed) -> None:
    bed.define("tiny")
    bed.ctl("start", "llamad@tiny")
    engine = Path("/run/llamad/model/tiny/engine")
    assert oct(engine.stat().st_mode & 0o777) == "0o700"
    assert (engine / "llama.sock").stat().st_mode & 0o077 == 0
    for folder in ("/var/lib/llamad/state/tiny", "/var/cache/llamad/tiny", "/run/llamad/ledger"):
        assert os.stat(folder).st_mode & 0o077 == 0, folder
    environ = Path(f"/proc/{bed.child_pid('tiny')}/environ").read_text()
    assert "NOTIFY_SOCKET" not in environ and "CREDENTIALS_DIRECTORY" not in environ
