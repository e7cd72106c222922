"""Checks against the world, and the ten mistakes that admins make."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from llamad.config.access import Identity, Mode
from llamad.config.check import World, check_definition, check_listen
from llamad.config.load import load_all, load_definition
from llamad.errors import AccessError, ConfigError, ExitCode, LlamadError, Where
from llamad.gguf.read import read_facts
from tests.support.models import build_tiny

# pytest's folders are closed to other users, and under /tmp: here nobody is asked about but by the tests of that
HERE = World(read_facts, sandboxed=False, user="no-such-user")


def write(root: Path, name: str, text: str) -> None:
    (root / f"{name}.toml").write_text(text)


def model_in(folder: Path, name: str = "tiny.gguf") -> Path:
    return build_tiny(folder / name, layers=1, embd=64, ctx_train_tokens=8192)


def check(
    root: Path, name: str = "tiny", *, credential: bool = False, world: World | None = None
) -> list[str]:
    """What `llamad check NAME` prints, line by line; loading and checking as one."""
    world = world or HERE
    try:
        loaded = load_definition(name, root)
        problems = check_definition(loaded, world, neighbours=load_all(root), credential_present=credential)
    except LlamadError as error:
        problems = [error]
    assert all(problem.exit_code == ExitCode.CONFIG for problem in problems)
    return [line.replace(f"{root}/", "") for problem in problems for line in str(problem).split("\n")]


def test_a_right_definition_has_no_problem(tmp_path: Path) -> None:
    write(
        tmp_path,
        "tiny",
        f'model = "{model_in(tmp_path)}"\nlisten = "127.0.0.1:8081"\n[placement]\ncontext = 8192\n',
    )
    assert check(tmp_path) == []


def test_the_ten_mistakes(tmp_path: Path) -> None:
    """Each gives one line with file, line, column and a fix, and exit code 78."""
    good = model_in(tmp_path)
    (tmp_path / "text.gguf").write_text("<html>Sign in</html>")
    cut = model_in(tmp_path, "cut.gguf")
    os.truncate(cut, cut.stat().st_size - 1000)
    write(tmp_path, "other", f'model = "{good}"\nlisten = "127.0.0.1:8081"\n')
    head = f'model = "{good}"\n'
    mistakes = {
        "misspelt key": (
            head + "[placement]\ncontxt = 4096",
            "tiny.toml:3:1: placement.contxt: unknown key; did you mean",
        ),
        "wrong type": (
            head + '[placement]\ncontext = "8k"',
            "tiny.toml:3:1: placement.context: expected an integer",
        ),
        "unknown section": (
            head + "[placment]\nx = 1",
            "tiny.toml:2:2: placment: unknown section; did you mean",
        ),
        "bad size": (
            head + '[placement]\nmemory = "10 Gigs"',
            "tiny.toml:3:1: placement.memory: not a size",
        ),
        "missing file": (
            f'model = "{tmp_path}/tiny.guff"',
            "tiny.guff: the model file does not exist; did you mean",
        ),
        "not a GGUF": (f'model = "{tmp_path}/text.gguf"', "text.gguf: it is a web page"),
        "truncated": (f'model = "{cut}"', "cut.gguf: the file is "),
        "duplicate address": (
            head + 'listen = "127.0.0.1:8081"',
            "tiny.toml:2:1: listen: 127.0.0.1:8081 is taken by other (other.toml:2:1); write a free one, "
            'for example "127.0.0.1:8082"',
        ),
        "context above trained": (
            head + "[placement]\ncontext = 8193",
            "tiny.toml:3:1: placement.context: 8193 is more than the model was trained for; write 8192 or less",
        ),
        "contradicting extra_args": (
            head + '[server]\nextra_args = ["--ctx-size", "9"]',
            "tiny.toml:3:15: server.extra_args[0]: --ctx-size is set by a key of its own; use placement.context",
        ),
        "extra_args that open a shell": (
            head + '[server]\nextra_args = [\n  "-l", "-1",\n  "--tools", "all",\n]',
            "tiny.toml:5:3: server.extra_args[2]: --tools is refused: it lets clients run commands on this host; delete",
        ),
    }
    for name, (text, wanted) in mistakes.items():
        write(tmp_path, "tiny", text + "\n")
        (line,) = check(tmp_path)
        assert wanted in line, name
        assert re.match(r"tiny\.toml:\d+:\d+: [a-z_.\[\]0-9]+: .+; .+", line), name
        assert len(line) < 400, name


# -- the model ---------------------------------------------------------------------------------------------


def test_problems_of_the_file_are_located_at_the_model_line(tmp_path: Path) -> None:
    write(tmp_path, "tiny", 'aliases = ["x"]\nmodel = "/srv/none/m.gguf"\n')
    (line,) = check(tmp_path)
    assert line.startswith("tiny.toml:2:1: model: /srv/none/m.gguf: the model file does not exist; ")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    first = build_tiny(tmp_path / "tiny.gguf", layers=1, embd=64, shards=3)
    (tmp_path / "tiny-00002-of-00003.gguf").unlink()
    write(tmp_path, "tiny", f'model = "{first}"\n')
    (line,) = check(tmp_path)
    assert "tiny-00002-of-00003.gguf: shard 2 of 3 of the model is missing" in line


def test_errors_of_any_kind_become_lines(tmp_path: Path) -> None:
    def unreadable(path: str) -> LlamadError:
        raise AccessError(
            "cannot open the model", where=Where(path), why="permission denied", fix="make it readable"
        )

    write(tmp_path, "tiny", f'model = "{model_in(tmp_path)}"\n')
    world = replace(HERE, read_model=unreadable)  # type: ignore[arg-type]
    (line,) = check(tmp_path, world=world)
    assert line.endswith("tiny.gguf: cannot open the model: permission denied; make it readable")


def test_the_unit_s_sandbox_is_named(tmp_path: Path) -> None:
    write(tmp_path, "tiny", 'model = "/home/joe/m.gguf"\napi_keys_file = "/home/joe/keys"\n')
    assert check(tmp_path, world=World(read_facts)) == [
        "tiny.toml:1:1: model: /home/joe/m.gguf cannot be read by the service: it lies in /home, which the unit does "
        "not see (ProtectHome=); move it to /var/lib/llamad/models",
        "tiny.toml:2:1: api_keys_file: /home/joe/keys cannot be read by the service: it lies in /home, which the unit "
        "does not see (ProtectHome=); move it to /var/lib/llamad/models",
    ]


def test_a_folder_closed_to_the_service_is_named(tmp_path: Path) -> None:
    class Closed:
        def identity(self, user: str) -> Identity:
            return Identity(user, 990, frozenset({990}))

        def mode(self, path: str) -> Mode:
            return Mode(0o700 if path == "/srv/secret" else 0o755, 0, 0)

        def real_path(self, path: str) -> str:
            return path

    write(tmp_path, "tiny", 'model = "/srv/secret/m.gguf"\n')
    (line,) = check(tmp_path, world=World(read_facts, access=Closed()))
    assert (
        "the folder /srv/secret is closed to the user _llamad; `setfacl -m u:_llamad:x /srv/secret`" in line
    )


def test_a_default_is_no_promise_but_a_written_context_min_is(tmp_path: Path) -> None:
    small = build_tiny(tmp_path / "small.gguf", layers=1, embd=64, ctx_train_tokens=2048)
    write(tmp_path, "tiny", f'model = "{small}"\n')
    assert check(tmp_path) == []  # context_min is 4096 by default
    write(tmp_path, "tiny", f'model = "{small}"\n[placement]\ncontext_min = 4096\n')
    assert check(tmp_path)[0].startswith("tiny.toml:3:1: placement.context_min: 4096 is more than")


def test_a_wrong_value_of_the_host_settings_is_located_there(tmp_path: Path) -> None:
    (tmp_path / "llamad.toml").write_text("[placement]\ncontext = 100000\n")
    write(tmp_path, "tiny", f'model = "{model_in(tmp_path)}"\n')
    assert check(tmp_path)[0].startswith("llamad.toml:2:1: placement.context: 100000 is more than")


# -- addresses, names, files -------------------------------------------------------------------------------


@pytest.mark.parametrize("listen", ["0.0.0.0:8081", "[::]:8081", "192.168.0.7:8081"])
def test_the_network_needs_keys_or_a_word(tmp_path: Path, listen: str) -> None:
    head = f'model = "{model_in(tmp_path)}"\nlisten = "{listen}"\n'
    write(tmp_path, "tiny", head)
    (line,) = check(tmp_path)
    assert line.startswith(
        f"tiny.toml:2:1: listen: {listen} can be reached from the network, and no API key is asked"
    )
    assert check(tmp_path, credential=True) == []
    with pytest.raises(ConfigError, match="can be reached from the network"):
        check_listen(load_definition("tiny", tmp_path), credential_present=False)
    check_listen(load_definition("tiny", tmp_path), credential_present=True)
    write(tmp_path, "tiny", head + "insecure = true\n")
    assert check(tmp_path) == []
    (tmp_path / "keys").write_text("secret\n")
    write(tmp_path, "tiny", head + f'api_keys_file = "{tmp_path}/keys"\n')
    assert check(tmp_path) == []


@pytest.mark.parametrize("listen", ["127.0.0.1:8081", "[::1]:8081", "unix:tiny.sock"])
def test_local_addresses_need_no_keys(tmp_path: Path, listen: str) -> None:
    write(tmp_path, "tiny", f'model = "{model_in(tmp_path)}"\nlisten = "{listen}"\n')
    assert check(tmp_path) == []


def test_both_sides_of_a_collision_are_told(tmp_path: Path) -> None:
    model = model_in(tmp_path)
    write(tmp_path, "a", f'model = "{model}"\nlisten = "unix:x.sock"\n')
    write(tmp_path, "b", f'model = "{model}"\n\nlisten = "unix:x.sock"\n')
    assert "is taken by b (b.toml:3:1)" in check(tmp_path, "a")[0]
    assert "is taken by a (a.toml:2:1)" in check(tmp_path, "b")[0]


def test_an_alias_belongs_to_one_definition(tmp_path: Path) -> None:
    model = model_in(tmp_path)
    write(tmp_path, "phi4", f'model = "{model}"\naliases = ["gpt-4o"]\n')
    write(tmp_path, "tiny", f'model = "{model}"\naliases = ["mine", "gpt-4o", "phi4", "mine"]\n')
    lines = check(tmp_path)
    assert [line.partition(";")[0] for line in lines] == [
        'tiny.toml:2:20: aliases[1]: "gpt-4o" is a name of phi4 (phi4.toml)',
        'tiny.toml:2:30: aliases[2]: "phi4" is a name of phi4 (phi4.toml)',
        'tiny.toml:2:38: aliases[3]: "mine" is there twice',
    ]


def test_files_that_a_definition_names_must_exist(tmp_path: Path) -> None:
    head = f'model = "{model_in(tmp_path)}"\napi_keys_file = "{tmp_path}/keys"\n'
    write(tmp_path, "tiny", head + f'[server]\nchat_template_file = "{tmp_path}/x.jinja"\n')
    lines = check(tmp_path)
    assert [line.partition(": ")[0] for line in lines] == ["tiny.toml:2:1", "tiny.toml:4:1"]
    assert all("does not exist" in line for line in lines)


def test_all_problems_come_in_the_order_of_their_places(tmp_path: Path) -> None:
    write(
        tmp_path,
        "tiny",
        'listen = "0.0.0.0:1"\napi_keys_file = "/none/keys"\naliases = ["a", "a"]\nmodel = "/none/m"\n',
    )
    places = [line.partition(": ")[0] for line in check(tmp_path)]
    assert places == ["tiny.toml:2:1", "tiny.toml:3:17", "tiny.toml:4:1"]


def test_a_name_that_somebody_gave_a_file_is_no_command_of_an_advice(tmp_path: Path) -> None:
    write(tmp_path, "tiny", f'model = "{tmp_path}/models/m-Q4.gguf"\n')
    (tmp_path / "models").mkdir()
    for name in ("m-Q4`reboot`.gguf", "m-Q4\x1b[2J.gguf"):
        (tmp_path / "models" / name).touch()
        (line,) = check(tmp_path)
        assert "reboot" not in line and line.isprintable()
    (tmp_path / "models" / "m-Q4_0.gguf").touch()
    (line,) = check(tmp_path)
    assert line.endswith('did you mean "models/m-Q4_0.gguf"?')
