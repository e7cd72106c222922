"""The sandbox's score, and keys that never show."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from tests.support.certificates import make_certificate
from tests.system.conftest import DROP_IN, ETC, Bed, get, post, run, wait_for

ON_CPU = "[placement]\nallow_cpu = true\ncontext = 2048\n"


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


def test_https_with_a_key_that_only_root_can_read_and_another_certificate_by_reload(bed: Bed, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "first")
    other, other_key = make_certificate(tmp_path, "second")
    shown, store = ETC / "tiny.crt", Path("/etc/credstore/llamad.tls-key.tiny")
    store.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        shown.write_bytes(certificate.read_bytes())
        store.write_bytes(key.read_bytes())
        store.chmod(0o600)
        url = bed.define("tiny", head=f'tls_cert = "{shown}"', extra=ON_CPU, vulkan=False).replace("http:", "https:")
        assert run("llamad", "check", "tiny").stderr == ""
        bed.ctl("start", "llamad@tiny")
        asked = ["curl", "-sS", "--max-time", "60", f"{url}/v1/completions", "-d", '{"prompt": "hello", "max_tokens": 4}']
        assert json.loads(run(*asked, "--cacert", str(certificate)).stdout)["usage"]["completion_tokens"] == 4
        assert run(*asked, "--cacert", str(other), check=False).returncode == 60  # not the one it knows
        assert run("curl", "-sS", url.replace("https:", "http:"), check=False).returncode != 0

        shown.write_bytes(other.read_bytes())  # and its key is not there yet: nothing changes
        assert "reload refused" in refused(bed, "is not the key of the certificate")
        assert json.loads(run(*asked, "--cacert", str(certificate)).stdout)["usage"]["completion_tokens"] == 4
        both = other.read_bytes() + other_key.read_bytes()
        shown.write_bytes(both)
        bed.define("tiny", head=f'tls_cert = "{shown}"\ntls_key = "{shown}"', extra=ON_CPU, vulkan=False)
        bed.ctl("reload", "llamad@tiny")
        assert json.loads(run(*asked, "--cacert", str(other)).stdout)["usage"]["completion_tokens"] == 4
        assert bed.show("llamad@tiny", "NRestarts") == "0"
    finally:
        store.unlink()


def refused(bed: Bed, why: str) -> str:
    """Reload; the status, which must name the reason."""
    bed.ctl("reload", "llamad@tiny", check=False)
    wait_for(lambda: why in bed.show("llamad@tiny", "StatusText"), "the status names the reason", 20)
    return bed.show("llamad@tiny", "StatusText")
