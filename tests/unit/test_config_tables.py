"""The tables for llama-server: what they take, the rules between their keys, and the files that they name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamad.config.kept import load_kept
from llamad.config.load import load_definition
from llamad.config.show import show_rows
from llamad.errors import ConfigErrors, ExitCode, LlamadError
from llamad.service.checks import require_usable
from llamad.service.facts import FactsReader
from tests.unit.test_config_check import check, model_in, write
from tests.unit.test_config_load import MODEL, problem


def bare(text: str, tmp_path: Path) -> str:
    """The one problem of a definition with these tables, without its place."""
    return problem(tmp_path, MODEL + text + "\n").partition(": ")[2]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        # values and their bounds
        ("[sampling]\ntop_p = 1.5", "sampling.top_p: expected a number from 0 to 1, got 1.5; write 1 or less"),
        ("[sampling]\nadaptive_decay = 1.0", "sampling.adaptive_decay: expected a number from 0 to 0.99, got 1.0; write 0.99 or less"),
        ("[sampling]\nmirostat = 3", "sampling.mirostat: expected an integer from 0 to 2, got 3; write 2 or less"),
        ("[sampling]\nseed = -1", "sampling.seed: expected an integer from 0 to 4294967294, got -1; write 0 or more"),
        ("[rope]\nscale = 0", "rope.scale: expected a number above 0 and up to 1000000000000, got 0; write more than 0"),
        ('[sampling]\nsamplers = ["top_k", "topp"]', 'did you mean "top_p"?'),
        ('[draft]\ntypes = ["ngram"]', 'did you mean "ngram-mod"?'),
        ('[placement]\ncpu_mask = "xyz"', 'placement.cpu_mask: expected a hexadecimal mask such as "ff", got "xyz"; write for example "ff"'),
        ('[placement]\ncpu_range = "7-3"', 'placement.cpu_range: not a range of CPUs: "7-3"; write for example "0-7", at most 511'),
        ('[placement]\ncpu_range = "0-512"', "at most 511"),
        ('[server]\ntags = ["a,b"]', 'server.tags[0]: expected a text without commas, got "a,b"; write another text'),
        ('[server]\nreasoning_effort = "lots"', "server.reasoning_effort: expected one of"),
        ("[lora]\ncontrol_vector_layers = [3]", "expected a first and a last layer such as [10, 31], got [3]; write for example [10, 31]"),
        ('[lora]\nadapters = ["/a.gguf"]', 'lora.adapters: expected a table, got ["/a.gguf"]; write { "/a.gguf" = ... }'),
        ('[lora]\nadapters = { "/a.gguf" = "1" }', 'lora.adapters./a.gguf: expected a number, got "1"; write 1 without quotes'),
        ("[lora]\nadapters.x = { y = 1 }", "lora.adapters.x: expected a number"),
        ('[sampling]\ntemprature = 1', "did you mean temperature?"),
        ('[server]\ntop_k = 1', "it belongs into [sampling]"),
        ('[vison]\nmmproj = "/m"', "did you mean [vision]?"),
        # rules between keys
        ("[placement]\ncpu_strict = true", "no CPUs are named to keep to; write cpu_range or cpu_mask too"),
        ('[placement]\nlazy_mode = "on"\nload_mode = "none"', 'placement.lazy_mode: "on" needs a file that is mapped'),
        ('[server]\npooling = "mean"', 'server.pooling: "mean" needs embeddings = true'),
        ('[server]\nreranking = true\npooling = "cls"', 'server.pooling: "cls" needs "rank", as reranking is true'),
        ("[server]\ncache_prompt = false\ncache_reuse = 8", "cache_prompt is false, so there is nothing to use again"),
        ('[server]\nreasoning = "off"\nreasoning_budget = 9', 'reasoning is "off", so there is nothing to limit'),
        ('[server]\nreasoning_budget_message = "x"', "no budget is written that could be used up"),
        ("[server]\njinja = false\nchat_template_kwargs = { a = 1 }", "only the template engine uses them, and jinja is false"),
        ('[server]\nreasoning = "on"\nchat_template_kwargs = { enable_thinking = false }', "enable_thinking is set by reasoning too"),
        ('[server]\noverride_kv = { a = "x,y" }', "has a comma or a quotation mark"),
        ('[server]\noverride_kv = { "a=b" = 1 }', 'or has a "="'),
        ('[sampling]\ngrammar_file = "/g"\njson_schema_file = "/j"', "grammar_file is written too"),
        ('[sampling]\nsamplers = ["top_k", "top_k"]', "one of them is there twice"),
        ('[sampling]\ndry_sequence_breakers = ["none", "x"]', '"none" stands for none at all'),
        ("[draft]\nn_max = 4", "draft.n_max: has no effect: nothing is guessed without types"),
        ('[draft]\ntypes = ["draft-simple"]', 'draft.types: "draft-simple" needs a model of its own; write model in [draft]'),
        ('[draft]\ntypes = ["ngram-mod"]\nmodel = "/d"', 'no type is written that uses a model; add "draft-simple" to types'),
        ('[draft]\ntypes = ["ngram-mod"]\ngpu_layers = 1', "is about a draft model, and none is written"),
        ('[draft]\ntypes = ["ngram-mod"]\nngram_min_hits = 1', 'no type is written that uses it; add "ngram-map-k" to types'),
        ('[draft]\ntypes = ["draft-mtp"]\nn_min = 5\nn_max = 4', "draft.n_min: 5 is above n_max (4)"),
        ("[lora]\ninit_without_apply = true", "there are no adapters"),
        ('[lora]\nadapters = { "/a:b" = 1 }', "has a colon, where llama-server expects the scale"),
        ("[lora]\ncontrol_vector_layers = [1, 2]", "there are no control_vectors"),
        ('[lora]\ncontrol_vectors = { "/c" = 1 }\ncontrol_vector_layers = [9, 2]', "is above the last (2); write [2, 9]"),
        ("[vision]\noffload = false", "vision.offload: has no effect without a projector; write mmproj, or delete it"),
        ('[vision]\nmmproj = "/m"\noffload = false\ngpu = "CUDA0"', "offload is false, so the projector is on no GPU"),
        ('[vision]\nmmproj = "/m"\nimage_min_tokens = 9\nimage_max_tokens = 8', "9 is above image_max_tokens (8)"),
        ("[rope]\nscale = 2\nfreq_scale = 0.5", "scale is written too; it is 1 / freq_scale; delete one of the two"),
        ('[vision]\nmmproj = "/m"\n[server]\ncontext_shift = true', "server.context_shift: llama-server cannot do that with a projector"),
        # texts that become arguments
        ('[vision]\nmmproj = "m.gguf"', 'vision.mmproj: "m.gguf" is no full path; write it in full, for example "/var/lib/llamad/models/m.gguf"'),
        ('[lora]\nadapters = { "a.gguf" = 1 }', 'lora.adapters.a.gguf: "a.gguf" is no full path'),
        ('[sampling]\ngrammar_file = "g"', 'for example "/etc/llamad/g"'),
        ('[sampling]\ndry_sequence_breakers = ["\\u0000"]', "sampling.dry_sequence_breakers[0]: has a NUL character"),
        ('[server]\nchat_template = "\\u0000"', "server.chat_template: has a NUL character"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, text: str, wanted: str) -> None:
    assert wanted in bare(text, tmp_path)


def test_the_place_of_a_broken_rule_is_the_key(tmp_path: Path) -> None:
    text = MODEL + '[draft]\ntypes = ["ngram-mod"]\nngram_min_hits = 1\n[lora]\nadapters = { "/a" = 1, "b" = 1 }\n'
    write(tmp_path, "phi4", text)
    with pytest.raises(LlamadError) as caught:
        load_definition("phi4", tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/phi4.toml:4:1: draft.ngram_min_hits: ")
    write(tmp_path, "phi4", text.replace("ngram_min_hits = 1\n", ""))
    with pytest.raises(LlamadError) as caught:
        load_definition("phi4", tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/phi4.toml:5:24: lora.adapters.b: ")


def test_tables_of_one_model_are_no_defaults_of_all(tmp_path: Path) -> None:
    (tmp_path / "llamad.toml").write_text("[sampling]\ntop_k = 7\n")
    write(tmp_path, "phi4", MODEL + "[sampling]\nmin_p = 0.5\n")
    sampling = load_definition("phi4", tmp_path).definition.sampling
    assert (sampling.top_k, sampling.min_p) == (7, 0.5)
    (tmp_path / "llamad.toml").write_text('[draft]\ntypes = ["ngram-mod"]\n')
    with pytest.raises(LlamadError, match=r"llamad.toml:1:2: draft: unknown section"):
        load_definition("phi4", tmp_path)


def test_a_drop_in_adds_an_adapter_and_every_value_is_kept_with_its_type(tmp_path: Path) -> None:
    text = '[server]\noverride_kv = { a = true, b = 1, c = 1.0, d = "x" }\n[lora]\nadapters = { "/a" = 0.5 }\n'
    write(tmp_path, "phi4", MODEL + text)
    (tmp_path / "phi4.toml.d").mkdir()
    (tmp_path / "phi4.toml.d/10.toml").write_text('[lora.adapters]\n"/b" = 1\n')
    cache = tmp_path / "cache.json"
    for _ in range(2):  # judged, then kept
        loaded = load_kept("phi4", tmp_path, cache)
        assert loaded.definition.lora.adapters == {"/a": 0.5, "/b": 1.0}
        kinds = [type(value) for value in loaded.definition.server.override_kv.values()]
        assert kinds == [bool, int, float, str]
        assert {"lora.adapters./a", "lora.adapters./b", "server.override_kv.a"} <= loaded.written
        rows = {key: (value, origin) for key, value, origin in show_rows(loaded)}
        assert rows["lora.adapters./b"] == ("1.0", f"{tmp_path}/phi4.toml.d/10.toml:2:1")
        assert rows["lora.init_without_apply"] == ("false", "default")
    assert "phi4" in json.loads(cache.read_text())


# -- files -------------------------------------------------------------------------------------------------------


def test_files_of_all_tables_must_exist(tmp_path: Path) -> None:
    model_in(tmp_path, "mmproj-tiny.gguf")
    write(tmp_path, "tiny", f'''model = "{model_in(tmp_path)}"
[sampling]
grammar_file = "{tmp_path}/g"
[draft]
types = ["draft-simple", "ngram-cache"]
model = "{tmp_path}/d"
ngram_cache_file = "{tmp_path}/n"
[lora.adapters]
"{tmp_path}/a" = 1
[lora.control_vectors]
"{tmp_path}/c" = 1
[vision]
mmproj = "{tmp_path}/mmproj-tinny.gguf"
''')  # fmt: skip
    lines = check(tmp_path)
    assert [line.split(":")[1] for line in lines] == ["3", "6", "7", "9", "11", "13"]
    assert all("does not exist" in line for line in lines)
    assert lines[-1].endswith('does not exist; did you mean "mmproj-tiny.gguf"?')


def test_a_file_that_the_unit_does_not_see_is_named(tmp_path: Path) -> None:
    from llamad.config.check import World
    from llamad.gguf.read import read_facts

    write(tmp_path, "tiny", 'model = "/home/m"\n[vision]\nmmproj = "/home/joe/mm.gguf"\n')
    lines = check(tmp_path, world=World(read_facts))
    assert "vision.mmproj: /home/joe/mm.gguf cannot be read by the service: it lies in /home" in lines[1]


def test_missing_weights_may_come_later_and_any_other_file_may_not(tmp_path: Path) -> None:
    """A unit is tried again for ever for exit status 66, and left failed for 78."""
    head = f'model = "{model_in(tmp_path)}"\n'

    def code(text: str) -> int:
        write(tmp_path, "tiny", head + text)
        loaded = load_definition("tiny", tmp_path)
        with pytest.raises(LlamadError) as caught:
            require_usable(loaded, FactsReader(), tmp_path, credential_present=False, sandboxed=False)
        assert not isinstance(caught.value, ConfigErrors)
        assert str(caught.value.where).startswith(f"{tmp_path}/tiny.toml:3:")
        return int(caught.value.exit_code)

    assert code(f'[vision]\nmmproj = "{tmp_path}/mm"\n') == ExitCode.NO_MODEL_FILE
    assert code(f'[lora]\nadapters = {{ "{tmp_path}/a" = 1 }}\n') == ExitCode.NO_MODEL_FILE
    assert code(f'[sampling]\ngrammar_file = "{tmp_path}/g"\n') == ExitCode.CONFIG


def test_a_stretched_context_may_be_longer_than_the_trained_one(tmp_path: Path) -> None:
    head = f'model = "{model_in(tmp_path)}"\n[placement]\ncontext = 32768\n'
    for text, problems in (
        ("", 1),
        ('[rope]\nscaling = "yarn"\nscale = 4\n', 0),
        ('[server]\noverride_kv = { "llama.context_length" = 32768 }\n', 0),
        ('[server]\noverride_kv = { "tokenizer.ggml.add_bos_token" = false }\n', 1),
    ):
        write(tmp_path, "tiny", head + text)
        assert len(check(tmp_path)) == problems, text
