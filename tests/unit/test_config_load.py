"""Files to definitions: merging, origins, promises, and every mistake at once with its place."""

from __future__ import annotations

import json
import os
import time
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamad.config.definition import Definition
from llamad.config.load import (
    definition_names,
    load_all,
    load_definition,
    load_host,
    load_path,
    misnamed_files,
)
from llamad.config.show import show_json, show_rows
from llamad.errors import ConfigError, ConfigErrors, ExitCode, LlamadError, Where

MODEL = 'model = "/srv/models/phi-4.gguf"\n'


def write(root: Path, **files: str) -> Path:
    """Files by name, `phi4` for phi4.toml, `phi4__10` for the drop-in phi4.toml.d/10.toml."""
    for name, text in files.items():
        base, _, dropin = name.partition("__")
        path = root / f"{base}.toml.d" / f"{dropin}.toml" if dropin else root / f"{base}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def refusal(root: Path, name: str = "phi4") -> list[str]:
    """The problems, each without the folder."""
    with pytest.raises(ConfigError) as caught:
        load_definition(name, root)
    assert caught.value.exit_code == ExitCode.CONFIG
    return str(caught.value).replace(f"{root}/", "").split("\n")


def problem(tmp_path: Path, text: str) -> str:
    (only,) = refusal(write(tmp_path, phi4=text))
    return only


# -- merging -----------------------------------------------------------------------------------------------


def test_six_lines_are_a_definition(tmp_path: Path) -> None:
    loaded = load_definition("phi4", write(tmp_path, phi4=MODEL))
    assert loaded.name == "phi4"
    assert loaded.definition.model == "/srv/models/phi-4.gguf"
    assert loaded.definition.placement.context == "auto"
    assert loaded.host.server == "llama-server"
    assert loaded.written == {"model"}
    assert loaded.files == (tmp_path / "phi4.toml",)
    assert loaded.origins[("model",)] == Where(str(tmp_path / "phi4.toml"), 1, 1)
    assert loaded.origins[("placement", "context")] is None
    assert loaded.where("placement", "context") == Where(str(tmp_path / "phi4.toml"), 1, 1)


def test_layers_are_laid_over_each_other(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        llamad='[host]\nserver = "/opt/llama"\n[placement]\nkv_cache = "q8_0"\nparallel = 1\ngpus = [0, 1]\n'
        '[environment]\nGGML_A = "host"\nGGML_B = "host"\n',
        phi4=MODEL + '[placement]\nparallel = 2\n[environment]\nGGML_B = "file"\n',
        phi4__20="[placement]\nparallel = 4\ngpus = [2]\n",
        phi4__10='aliases = ["a", "b"]\nplacement.parallel = 3\nenvironment = { GGML_C = "ten" }\n',
    )
    loaded = load_definition("phi4", root)
    definition = loaded.definition
    assert loaded.host.server == "/opt/llama"
    assert definition.placement.kv_cache == "q8_0"
    assert definition.placement.parallel == 4
    assert definition.placement.gpus == (2,)
    assert definition.aliases == ("a", "b")
    assert definition.environment == {"GGML_A": "host", "GGML_B": "file", "GGML_C": "ten"}
    assert [file.name for file in loaded.files] == ["llamad.toml", "phi4.toml", "10.toml", "20.toml"]
    at = {
        path: f"{Path(place.path).name}:{place.line}:{place.column}"
        for path, place in loaded.origins.items()
        if place
    }
    assert at == {
        ("host", "server"): "llamad.toml:2:1",
        ("model",): "phi4.toml:1:1",
        ("aliases",): "10.toml:1:1",
        ("aliases", 0): "10.toml:1:12",
        ("aliases", 1): "10.toml:1:17",
        ("placement", "kv_cache"): "llamad.toml:4:1",
        ("placement", "parallel"): "20.toml:2:1",
        ("placement", "gpus"): "20.toml:3:1",
        ("placement", "gpus", 0): "20.toml:3:9",
        ("environment", "GGML_A"): "llamad.toml:8:1",
        ("environment", "GGML_B"): "phi4.toml:5:1",
        ("environment", "GGML_C"): "10.toml:3:17",
    }
    assert {
        "placement.parallel",
        "placement.kv_cache",
        "environment.GGML_A",
        "host.server",
    } <= loaded.written


def test_every_value_has_an_origin(tmp_path: Path) -> None:
    loaded = load_definition("phi4", write(tmp_path, phi4=MODEL + "[limits]\ndrain_s = 5\n"))
    keys = {row[0] for row in show_rows(loaded)}
    assert {
        "model",
        "listen",
        "placement.context",
        "limits.drain_s",
        "idle.keep_alive",
        "host.server",
    } <= keys
    assert loaded.definition.limits.drain_s == 5.0
    assert loaded.written == {"model", "limits.drain_s"}


def test_left_overs_of_editors_and_dpkg_are_ignored(tmp_path: Path) -> None:
    root = write(tmp_path, phi4=MODEL, phi4__10="listen_mode = '0660'\n")
    folder = root / "phi4.toml.d"
    for name in ("20.toml.dpkg-new", "20.toml~", ".20.toml.swp", ".20.toml", "#20.toml#", "README"):
        (folder / name).write_text("not TOML")
    for name in ("old.toml.dpkg-old", ".hidden.toml", "phi4.toml~", "x.toml.ucf-dist"):
        (root / name).write_text("not TOML")
    assert load_definition("phi4", root).definition.listen_mode == "0660"
    assert definition_names(root) == ["phi4"]


def test_the_digest_follows_the_contents(tmp_path: Path) -> None:
    root = write(tmp_path, phi4=MODEL)
    first = load_definition("phi4", root).digest
    os.utime(root / "phi4.toml", (1, 1))
    assert load_definition("phi4", root).digest == first
    write(root, phi4=MODEL + "# a comment\n")
    second = load_definition("phi4", root).digest
    write(root, phi4__10="insecure = true\n")
    assert len({first, second, load_definition("phi4", root).digest}) == 3


def test_a_definition_outside_the_folder(tmp_path: Path) -> None:
    root = write(tmp_path / "etc", llamad="[placement]\nparallel = 2\n")
    elsewhere = write(tmp_path / "else", phi4=MODEL)
    loaded = load_path(elsewhere / "phi4.toml", root)
    assert (loaded.name, loaded.definition.placement.parallel) == ("phi4", 2)
    odd = elsewhere / "My Model.toml"
    odd.write_text(MODEL)
    assert load_path(odd, root).name == "definition"
    with pytest.raises(ConfigError, match=r"none\.toml does not exist"):
        load_path(elsewhere / "none.toml", root)


def test_host_settings_alone(tmp_path: Path) -> None:
    assert load_host(tmp_path).settings.host.server == "llama-server"
    host = load_host(write(tmp_path, llamad="[host]\nquery_s = 2\n"))
    assert host.settings.host.query_s == 2.0
    assert host.origins[("host", "query_s")] == Where(str(tmp_path / "llamad.toml"), 2, 1)
    write(tmp_path, llamad="[host]\nquery_s = 0\n")
    with pytest.raises(
        ConfigError, match=r"2:1: host\.query_s: expected a number above 0.*write more than 0"
    ):
        load_host(tmp_path)


# -- names -------------------------------------------------------------------------------------------------


def test_a_missing_definition_names_the_path_and_the_nearest(tmp_path: Path) -> None:
    root = write(tmp_path, phi4=MODEL, qwen3=MODEL)
    with pytest.raises(ConfigError) as caught:
        load_definition("phi3", root)
    assert (
        str(caught.value)
        == f'there is no definition "phi3": {root}/phi3.toml does not exist; did you mean phi4?'
    )
    with pytest.raises(ConfigError, match="there are phi4, qwen3"):
        load_definition("zzzzzzzz", root)
    with pytest.raises(ConfigError, match="llamad add phi4 FILE"):
        load_definition("phi4", tmp_path / "none")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../phi4",
        "/etc/passwd",
        "phi4/..",
        "Phi4",
        "phi4.toml/x",
        "-x",
        ".x",
        "a" * 49,
        "a\0b",
        "a b",
        "a\n",
    ],
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_definition(name, write(tmp_path, phi4=MODEL))
    assert "no name of a definition" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == ExitCode.CONFIG


def test_the_name_of_the_host_settings_is_reserved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="for the host settings"):
        load_definition("llamad", write(tmp_path, llamad="", phi4=MODEL))


def test_a_file_s_name_in_place_of_its_definition(tmp_path: Path) -> None:
    root = write(tmp_path, phi4=MODEL)
    with pytest.raises(ConfigError, match="there is phi4"):
        load_definition("/etc/llamad/Foo.toml", root)
    with pytest.raises(ConfigError, match=r"did you mean phi4\?"):
        load_definition("Phi4.toml", root)


def test_files_that_no_name_reaches_are_told(tmp_path: Path) -> None:
    root = write(tmp_path, phi4=MODEL, Phi5=MODEL, llamad="")
    (only,) = misnamed_files(root)
    assert str(only).startswith(f"{root}/Phi5.toml:1:1: the file's name is no name of a definition")
    assert misnamed_files(tmp_path / "none") == []


def test_broken_definitions_do_not_hide_the_others(tmp_path: Path) -> None:
    root = write(tmp_path, phi4=MODEL, bad="model = 5\n", worse="[")
    assert [loaded.name for loaded in load_all(root)] == ["phi4"]
    assert definition_names(root) == ["bad", "phi4", "worse"]


# -- problems ----------------------------------------------------------------------------------------------

MISTAKES = [
    (MODEL + "contxt = 1", "2:1: contxt: unknown key; did you mean placement.context?"),
    (MODEL + "[placement]\ncontxt = 1", "3:1: placement.contxt: unknown key; did you mean context?"),
    (MODEL + "context = 8192", "2:1: context: unknown key; it belongs into [placement]"),
    (MODEL + "[placement]\nn_ctx = 8192", "3:1: placement.n_ctx: unknown key; did you mean context?"),
    (MODEL + "n_gpu_layers = 35", "2:1: n_gpu_layers: unknown key; did you mean placement.gpu_layers?"),
    (MODEL + "[placement]\nctx-size = 8192", "3:1: placement.ctx-size: unknown key; did you mean context?"),
    (MODEL + "[server]\nport = 8081", "3:1: server.port: unknown key; did you mean listen?"),
    ("aliases = []", '1:1: model: is missing; write: model = "/path/to/file.gguf"'),
    ("[placement]\n" + MODEL, "2:1: placement.model: unknown key; model belongs above the first [section]"),
    ('modle = "/srv/m.gguf"', "1:1: modle: unknown key; did you mean model?"),
    ('model_path = "/srv/m.gguf"', "1:1: model_path: unknown key; did you mean model?"),
    (MODEL + "[placment]\nx = 1", "2:2: placment: unknown section; did you mean [placement]?"),
    (
        MODEL + "[zzz]\nx = 1",
        "2:2: zzz: unknown section; delete it; the sections are [placement], [limits], ",
    ),
    (MODEL + "[idle]\nzzz = 1", "3:1: idle.zzz: unknown key; delete it; the keys here are keep_alive"),
    (MODEL + "[Placement]\nparallel = 1", "2:2: Placement: unknown section; did you mean [placement]?"),
    (MODEL + 'placement = "auto"', '2:1: placement: expected a table, got "auto"; write a table'),
    (MODEL + "placement = 5", "2:1: placement: expected a table, got 5; make it a section: [placement]"),
    (MODEL + "[[placement]]\nparallel = 1", "2:3: placement: expected a table, got "),
    (
        MODEL + '[placement]\ncontext = "8k"',
        '3:1: placement.context: expected an integer or "auto", got "8k"; write 8192',
    ),
    (MODEL + '[placement]\ncontext = "16K"', "write 16384"),
    (MODEL + '[placement]\ncontext = "1.5k"', "write 1536"),
    (MODEL + '[placement]\ncontext = "8192"', "write 8192 without quotes"),
    (MODEL + '[placement]\ncontext = "Auto"', 'did you mean "auto"?'),
    (MODEL + '[placement]\ncontext = "much"', 'got "much"; write a number'),
    (
        MODEL + "[placement]\ncontext = 0",
        'expected an integer from 1 to 2147483647 or "auto", got 0; write 1 or more',
    ),
    (
        MODEL + "[placement]\nparallel = 257",
        'expected an integer from 1 to 256 or "auto", got 257; write 256 or less',
    ),
    (MODEL + "[placement]\nparallel = 1.5", 'expected an integer or "auto", got 1.5; '),
    (MODEL + "[placement]\nparallel = true", 'expected an integer or "auto", got true; '),
    (
        MODEL + "[placement]\ncontext = [8192]",
        'expected an integer or "auto", got [8192]; write 8192 without brackets',
    ),
    (MODEL + '[placement]\nkv_cache = "q8"', 'or "auto", got "q8"; did you mean "q8_0"?'),
    (
        MODEL + '[placement]\nallow_cpu = "true"',
        'expected true or false, got "true"; write true without quotes',
    ),
    (MODEL + "[placement]\nallow_cpu = 1", "expected true or false, got 1; write true"),
    (
        MODEL + '[placement]\nmemory = "10 GiBs"',
        '3:1: placement.memory: not a size: "10 GiBs"; write for example 512MiB or 10GiB',
    ),
    (MODEL + '[placement]\nmemory = "0%"', 'not a share: "0%"; write 1% to 100%'),
    (MODEL + "[placement]\nmemory = 10", 'got 10; write for example "10GiB"'),
    (MODEL + "[placement]\ngpus = 0", 'expected a list in square brackets or "auto", got 0; write [0]'),
    (
        MODEL + "[placement]\ngpus = [0, 1.5]",
        "3:12: placement.gpus[1]: expected an integer or a text in quotes, got 1.5",
    ),
    (
        MODEL + "[placement]\ntensor_split = [0, 0]",
        "3:1: placement.tensor_split: all shares are 0; give one device a share",
    ),
    (
        MODEL + "[placement]\ncontext = 10\ncontext_min = 20",
        "4:1: placement.context_min: 20 is above context (10)",
    ),
    (MODEL + "[placement]\nbatch = 5\nubatch = 6", "4:1: placement.ubatch: 6 is above batch (5)"),
    (MODEL + '[placement]\nkv_cache = "q8_0"\nflash_attention = false', "3:1: placement.kv_cache: "),
    (
        MODEL + "[placement]\ncpu_moe = true\nn_cpu_moe = 3",
        "4:1: placement.n_cpu_moe: cpu_moe is written too",
    ),
    (
        MODEL + "[server]\nembeddings = true\nreranking = true",
        "4:1: server.reranking: embeddings is true too",
    ),
    (MODEL + 'listen = "8081"', '2:1: listen: "8081" is a port alone; write "127.0.0.1:8081"'),
    (
        MODEL + "listen = 8081",
        '2:1: listen: expected an address such as "127.0.0.1:8081", got 8081; write for example',
    ),
    (MODEL + 'aliases = "a"', '2:1: aliases: expected a list in square brackets, got "a"; write ["a"]'),
    (MODEL + 'aliases = ["a", 5]', '2:17: aliases[1]: expected a text in quotes, got 5; write "5"'),
    (MODEL + 'start = "allways"', 'got "allways"; did you mean "always"?'),
    (
        MODEL + "[environment]\nGGML_X = 1",
        '3:1: environment.GGML_X: expected a text in quotes, got 1; write "1"',
    ),
    (
        MODEL + '[environment]\nLD_PRELOAD = "x"',
        "3:1: environment.LD_PRELOAD: is refused: it loads other code",
    ),
    (
        MODEL + "[limits]\nwait_s = -1",
        "3:1: limits.wait_s: expected a number from 0 to 10000000, got -1; write 0 or more",
    ),
    (MODEL + "[limits]\nwait_s = inf", "got inf; "),
    (MODEL + "[limits]\nwait_s = nan", "got nan; "),
    (
        MODEL + '[idle]\nkeep_alive = "soon"',
        '3:1: idle.keep_alive: not a duration: "soon"; write for example 60s or 30min',
    ),
    (
        'model = "phi.gguf"',
        '1:1: model: "phi.gguf" is no full path; write it in full, for example "/var/lib/llamad/models/phi.gguf"',
    ),
    ('model = "/a\\nb"', "1:1: model: has a control character; delete it"),
    ("model = 5", '1:1: model: expected a text in quotes, got 5; write "5"'),
    (MODEL + 'api_keys_file = "keys"', "2:1: api_keys_file: "),
    (
        MODEL + '[server]\nextra_args = ["-c", "8"]',
        "3:15: server.extra_args[0]: -c is set by a key of its own; use placement.context",
    ),
    (
        MODEL + '[server]\nextra_args = [\n"--tools", "all"]',
        "4:1: server.extra_args[0]: --tools is refused: it lets clients run commands",
    ),
    (
        MODEL + 'front = "direct"\n[limits]\nwait_s = 5',
        '4:1: limits.wait_s: only llamad\'s own front does that; delete it, or front = "relay"',
    ),
    (MODEL + 'front = "direct"\ntls_cert = "/etc/x.crt"', "3:1: tls_cert: only llamad's own front does that; "),
    (MODEL + 'tls_key = "/etc/x.key"', "2:1: tls_key: no certificate is written beside this key; "),
    (MODEL + 'front = "direct"\nlisten = "unix:a.sock"', "2:1: front: "),
    ("model = /srv/x.gguf", '1:9: model: not a value; write: model = "/srv/x.gguf"'),
]


@pytest.mark.parametrize(("text", "wanted"), MISTAKES)
def test_each_mistake_is_one_line_with_place_and_fix(tmp_path: Path, text: str, wanted: str) -> None:
    line = problem(tmp_path, text)
    assert wanted in line
    assert line.startswith("phi4.toml:")
    assert "; " in line


def test_all_mistakes_come_at_once_in_the_order_of_their_places(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        llamad='[placement]\nkv_cache = "q8"\n[limts]\n',
        phi4="model = 5\n[placement]\nparallel = 0\nzzz = 1\n",
        phi4__10="insecure = 1\n",
    )
    places = [line.partition(": ")[0] for line in refusal(root)]
    assert places == [
        "llamad.toml:2:1",
        "llamad.toml:3:2",
        "phi4.toml:1:1",
        "phi4.toml:3:1",
        "phi4.toml:4:1",
        "phi4.toml.d/10.toml:1:1",
    ]
    with pytest.raises(ConfigErrors) as caught:
        load_definition("phi4", root)
    assert len(caught.value.problems) == 6


def test_a_mistake_in_the_host_settings_is_located_there_even_if_overridden(tmp_path: Path) -> None:
    root = write(tmp_path, llamad="[placement]\nparallel = 0\n", phi4=MODEL + "[placement]\nparallel = 1\n")
    assert refusal(root) == [
        'llamad.toml:2:1: placement.parallel: expected an integer from 1 to 256 or "auto", got 0; write 1 or more'
    ]


def test_a_definition_s_keys_do_not_belong_into_the_host_settings(tmp_path: Path) -> None:
    (line,) = refusal(write(tmp_path, llamad='model = "/x"\n', phi4=MODEL))
    assert line.startswith("llamad.toml:1:1: model: unknown key")


def test_broken_syntax_hides_the_guesses_but_not_other_broken_files(tmp_path: Path) -> None:
    lines = refusal(write(tmp_path, llamad="[", phi4="model = 5\n", phi4__10="x"))
    assert [line.partition(": ")[0] for line in lines] == ["llamad.toml:1:2", "phi4.toml.d/10.toml:1:2"]


def test_things_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "phi4.toml").mkdir()
    assert refusal(tmp_path) == ["phi4.toml:1:1: it is no file; put a TOML file there"]
    os.mkfifo(tmp_path / "pipe.toml")
    assert "it is no file" in refusal(tmp_path, "pipe")[0]


def test_a_link_to_a_file_is_followed_and_a_dangling_one_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "data", real=MODEL)
    (tmp_path / "phi4.toml").symlink_to(tmp_path / "data" / "real.toml")
    assert load_definition("phi4", tmp_path).name == "phi4"
    (tmp_path / "gone.toml").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="there is no definition"):
        load_definition("gone", tmp_path)


SCALARS = st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=8), st.just("auto"))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
KEYS = st.sampled_from([*(field.name for field in fields(Definition)), "context", "parallel", "gpus", "extra_args", "zzz"])


def toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=True)
    return str(value)


@settings(max_examples=300, deadline=None)
@given(
    tables=st.dictionaries(
        st.sampled_from(["", "placement", "server", "limits", "zzz"]), st.dictionaries(KEYS, VALUES)
    )
)
def test_any_values_are_loaded_or_refused_with_places(
    tmp_path_factory: pytest.TempPathFactory, tables: dict[str, dict[str, object]]
) -> None:
    root = tmp_path_factory.mktemp("etc")
    text = "".join(f"{key} = {toml(value)}\n" for key, value in tables.pop("", {}).items())
    for table, pairs in tables.items():
        text += f"[{table}]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in pairs.items())
    (root / "m.toml").write_text(text)
    try:
        load_definition("m", root)
    except LlamadError as error:
        for line in str(error).split("\n"):
            assert line.startswith(f"{root}/m.toml:")
            assert "; " in line


# -- show --------------------------------------------------------------------------------------------------


def test_show_has_every_value_with_its_origin(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        llamad='[placement]\nkv_cache = "q8_0"\n',
        phi4=MODEL + 'aliases = ["ä", "b\\"c"]\n[environment]\nGGML_X = "1"\n[placement]\ncontext = 8192\n',
    )
    loaded = load_definition("phi4", root)
    rows = {key: (value, origin.replace(f"{root}/", "")) for key, value, origin in show_rows(loaded)}
    assert rows["model"] == ('"/srv/models/phi-4.gguf"', "phi4.toml:1:1")
    assert rows["aliases"] == ('["ä", "b\\"c"]', "phi4.toml:2:1")
    assert rows["placement.context"] == ("8192", "phi4.toml:6:1")
    assert rows["placement.kv_cache"] == ('"q8_0"', "llamad.toml:2:1")
    assert rows["placement.allow_cpu"] == ("false", "default")
    assert rows["environment.GGML_X"] == ('"1"', "phi4.toml:4:1")
    assert rows["listen"] == ("(not set)", "default")
    shown = show_json(loaded)
    assert json.loads(json.dumps(shown)) == shown
    assert shown["values"]["placement.context"] == {
        "value": 8192, "file": f"{root}/phi4.toml", "line": 6, "column": 1
    }  # fmt: skip
    assert set(shown["values"]) == set(rows)


def test_of_thousands_of_mistakes_the_first_are_told_in_a_moment(tmp_path: Path) -> None:
    keys = "\n".join(f"nonsense{n} = {n}" for n in range(2_000))
    (tmp_path / "phi4.toml").write_text(f'model = "/m.gguf"\n{keys}\n')
    started_s = time.monotonic()
    with pytest.raises(ConfigErrors) as caught:
        load_definition("phi4", tmp_path)
    assert time.monotonic() - started_s < 3
    assert len(caught.value.problems) == 51
    assert "1950 more mistakes" in str(caught.value)


def test_a_dropin_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    (tmp_path / "phi4.toml").write_text('model = "/m.gguf"\n')
    (tmp_path / "phi4.toml.d").mkdir()
    (tmp_path / "phi4.toml.d" / "a.toml").symlink_to("/nonexistent/a.toml")
    with pytest.raises(ConfigError, match="leads nowhere"):
        load_definition("phi4", tmp_path)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('api_keys_file = "/etc/k\\u0000"', "2:1: host.api_keys_file: has a control character; delete it"),
        ('api_keys_file = "llamad.keys"', '2:1: host.api_keys_file: "llamad.keys" is no full path; write it in full'),
        ('tls_key = "/etc/x.key"', "2:1: host.tls_key: no certificate is written beside this key; "),
    ],
)
def test_mistakes_of_the_host_too(tmp_path: Path, text: str, wanted: str) -> None:
    folder = write(tmp_path, phi4=MODEL, llamad=f"[host]\n{text}\n")
    for load in (lambda: load_host(folder), lambda: load_definition("phi4", folder)):
        with pytest.raises(ConfigError) as caught:
            load()
        assert f"llamad.toml:{wanted}" in str(caught.value)


@pytest.mark.parametrize("key", ["memory", "idle.keep_alive"])
def test_a_number_beyond_all_numbers_is_a_mistake_of_the_file(key: str, tmp_path: Path) -> None:
    table, _, name = key.rpartition(".")
    value = f"{'9' * 400}{'GiB' if key == 'memory' else 'h'}"
    (tmp_path / "phi4.toml").write_text(f'model = "/srv/m.gguf"\n[{table or "placement"}]\n{name} = "{value}"\n')
    with pytest.raises(ConfigError) as caught:
        load_definition("phi4", tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/phi4.toml:3:")
