"""`llamad export`: hosts and models in, configuration out, which HAProxy, nginx and Prometheus themselves accept."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from llamad.cli.main import main
from llamad.errors import UsageError
from llamad.export.fleet import Fleet, Host, Model, parse_hosts, usable
from llamad.export.haproxy import haproxy
from llamad.export.litellm import litellm
from llamad.export.nginx import nginx
from llamad.export.prometheus import RULES, prometheus
from tests.support.certificates import make_certificate

SHIPPED = Path(__file__).parents[2] / "packaging/observability/prometheus"
ODD = ("phi-4", 'gpt 4 "o" $x \\n -i #c', "-f", "o'k", "~x", "default", "a;{b}", "Phi-4", "GPT-4", "gpt-4", "@1@/x", "%[x]")
GENERATORS = {"haproxy": haproxy, "nginx": nginx, "prometheus": prometheus, "litellm": litellm}


def fleet(hosts: str = "127.0.0.1:8081,127.0.0.1:8082,[::1]:8080", *models: Model, tls_ca: str = "") -> Fleet:
    given, _ = usable(models or (Model("phi4", ODD), Model("qwen3.5-a_b")))
    return Fleet(parse_hosts([hosts]), given, "127.0.0.1:18000", tls_ca)


def program(name: str) -> str:
    """Where it is; skips where it is not installed."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def accepted(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_hosts_are_names_or_addresses_with_or_without_ports() -> None:
    given = parse_hosts(["gpu1, GPU2.example:8081,", "[FD00:0::3],10.0.0.4:1"])
    assert given == (Host("gpu1", 8080), Host("gpu2.example", 8081), Host("fd00::3", 8080), Host("10.0.0.4", 1))
    assert [host.address for host in given] == ["gpu1:8080", "gpu2.example:8081", "[fd00::3]:8080", "10.0.0.4:1"]
    assert len({host.word for host in given}) == 4
    assert [host.is_local for host in parse_hosts(["localhost,127.0.0.9,[::1],gpu1"])] == [True, True, True, False]


@pytest.mark.parametrize(
    "text", ["", ",", "a_b", "a:0", "a:65536", "a:x", "fd00::3", "[zz::]", "[1::2::3]", "a b", "a;b", "a\nb", "-a", "a,a:8080", "$(x)"]
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_hosts([text])


def test_aliases_are_each_of_one_model_and_what_cannot_be_written_is_told() -> None:
    models, left = usable([Model("a", ("x", "b", "ü", "x\ny")), Model("b", ("x", "y"))])
    assert models == (Model("a", ("x",)), Model("b", ("y",)))
    assert left == ("ü", "x\ny")


def test_haproxy_accepts_what_is_made_for_it(tmp_path: Path) -> None:
    binary = program("haproxy")
    before = tmp_path / "haproxy.cfg"
    before.write_text("global\n    log 127.0.0.1:514 local0\n\ndefaults\n    mode tcp\n    timeout connect 5s\n")
    ca = str(make_certificate(tmp_path, "ca")[0])
    mixed = "gpu1.invalid,10.0.0.1"
    trusting = [fleet(mixed, Model("x"), tls_ca=one) for one in (ca, "system")]
    for name, made in (("one", fleet()), ("two", fleet(mixed, Model("x"))), ("ca", trusting[0]), ("system", trusting[1])):
        file = tmp_path / f"{name}.cfg"
        file.write_text(haproxy(made))
        assert "[WARNING]" not in accepted(binary, "-c", "-f", str(before), "-f", str(file))
    file.write_text(haproxy(fleet()).replace("json_query", "json_qery"))
    with pytest.raises(AssertionError, match="json_qery"):
        accepted(binary, "-c", "-f", str(before), "-f", str(file))


def test_nginx_accepts_what_is_made_for_it(tmp_path: Path) -> None:
    binary = program("nginx")
    folders = " ".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    whole = tmp_path / "nginx.conf"
    whole.write_text(
        f"events {{}}\npid {tmp_path}/pid;\nerror_log stderr;\n"
        f"http {{ access_log off; {folders} include {tmp_path}/llamad.conf; }}\n"
    )
    for ca in ("", str(make_certificate(tmp_path, "ca")[0])):
        (tmp_path / "llamad.conf").write_text(nginx(fleet(tls_ca=ca)))
        accepted(binary, "-t", "-e", "stderr", "-c", str(whole))


def test_prometheus_accepts_what_is_made_for_it(tmp_path: Path) -> None:
    binary = program("promtool")
    text = prometheus(fleet())
    assert text.count(RULES) == 1
    file = tmp_path / "prometheus.yml"
    for text in (prometheus(fleet()), prometheus(fleet(tls_ca=str(make_certificate(tmp_path, "ca")[0])))):
        file.write_text(text.replace(RULES, str(SHIPPED / "llamad.rules.yml")))
        accepted(binary, "check", "config", str(file))


def test_litellm_is_told_of_each_model_on_each_host() -> None:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    made = yaml.safe_load(litellm(fleet()))
    rows = {(row["model_name"], row["litellm_params"]["model"], row["litellm_params"]["api_base"]) for row in made["model_list"]}
    assert len(rows) == 6 and ("phi4", "openai/phi4", "http://[::1]:8080/v1") in rows
    assert made["router_settings"]["model_group_alias"] == dict.fromkeys(ODD, "phi4")
    bare = yaml.safe_load(litellm(fleet("a", Model("x"))))
    assert "model_group_alias" not in bare["router_settings"]


def test_the_example_for_prometheus_is_what_the_verb_prints() -> None:
    assert (SHIPPED / "prometheus.yml").read_text() == prometheus(fleet("127.0.0.1:8080", Model("x")))


@pytest.mark.parametrize("kind", sorted(GENERATORS))
def test_the_verb_reads_models_and_aliases_of_this_host(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "phi4.toml").write_text('model = "/m.gguf"\naliases = ["gpt-4o-mini", "tschüss"]\n')
    (tmp_path / "broken.toml").write_text("modle = 1\n")
    words = ["--config", str(tmp_path), "export", kind, "--hosts", "gpu1,gpu2:8081"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "gpu1:8080" in shown.out and "gpu2:8081" in shown.out
    if kind == "prometheus":
        assert main([*words, "--model", "phi4"]) == 64
        return
    assert "gpt-4o-mini" in shown.out and "broken" in shown.out
    assert "tsch\\xfcss" in shown.err and "tsch" not in shown.out
    assert main([*words, "--model", "other,phi4", "--model", "other"]) == 0
    chosen = capsys.readouterr().out
    assert "other" in chosen and "gpt-4o-mini" in chosen and "broken" not in chosen
    assert main([*words, "--model", "Phi4"]) == 78
    assert main([*words, "--listen", "8000"]) == 64
    assert main([*words, "--tls-ca", "ca.pem"]) == 64
    assert main([*words, "--tls-ca", "/etc/ca.pem"]) == 0
    assert "/etc/ca.pem" in capsys.readouterr().out
    assert main(["--config", str(tmp_path / "none"), *words[2:]]) == 64


def test_names_of_models_reach_haproxy_as_they_are() -> None:
    lines = [line for line in haproxy(fleet()).splitlines() if line.startswith("    acl asks_for_phi4 ")]
    found = re.findall(r'"((?:[^"\\]|\\.)*)"', "\n".join(lines))
    assert [json.loads(f'"{word}"'.replace("\\$", "$")) for word in found] == ["phi4", *ODD]


def test_no_model_has_the_name_of_a_condition_of_haproxy() -> None:
    text = haproxy(fleet("gpu1", Model("named"), Model("form"), Model("phi4", tuple(f"a{number}" for number in range(100)))))
    acls = re.findall(r"^    acl (\S+) (.*)$", text, re.MULTILINE)
    subjects = {name: {what.split()[0] for other, what in acls if other == name} for name, _ in acls}
    assert len([name for name, what in acls if what.endswith('"form"') or "multipart" in what]) == 2
    assert subjects["is_form"] == {"req.hdr(Content-Type)"} and [name for name, _ in acls].count("is_named") == 1
    assert all(len(line.split()) < 64 for line in text.splitlines() if not line.lstrip().startswith("#"))


def test_names_that_nginx_reads_otherwise_or_has_no_room_for() -> None:
    assert '\n    "\\\\\\\\x" llamad_model_phi4;' in nginx(fleet("gpu1", Model("phi4", ("\\x",))))
    assert "map_hash_bucket_size" not in nginx(fleet("gpu1", Model("phi4", ("a" * 46,))))
    assert "map_hash_bucket_size 128;" in nginx(fleet("gpu1", Model("phi4", ("a" * 47,))))
    assert "map_hash_bucket_size 256;" in nginx(fleet("gpu1", Model("phi4", ("a" * 111,))))
