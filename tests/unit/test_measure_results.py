"""What is written down of measurements: results, tables, comparisons, bounds, drop-ins; and what is not believed."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from llamad.config.load import load_definition
from llamad.errors import ChildError, ConfigError
from llamad.gguf.facts import ModelFacts, Tensor
from llamad.measure import history
from llamad.measure.bandwidth import bytes_a_token, expected
from llamad.measure.dropin import apply, drop_in_of, is_ours, own_keys, require_writable
from llamad.measure.report import bench_text, tune_text
from llamad.measure.results import BenchResult, Figure, PlanInForce, Point, Tried, TuneResult, read_result
from llamad.measure.runner import expectation
from llamad.measure.subject import device_shares, plan_of
from tests.support.measure_schema import FOLDER, KINDS, text_of


def result(*values: float, at: str = "2026-11-01T10:00:00+00:00", engine: str = "b11669", slots: int = 4) -> BenchResult:
    figure = Figure.of(values or (20.0, 21.0, 22.0))
    point = Point(prompt_tokens=512, requests_at_once=1, prompt_tokens_s=figure, generated_tokens_s=figure,
                  first_token_s=Figure.of([0.5, 0.6]))  # fmt: skip
    left_out = Point(prompt_tokens=8192, requests_at_once=4, note="needs 33344 tokens of context")
    return BenchResult(
        llamad="0.1.0", name="phi4", measured_at=at, model="/m.gguf", model_fingerprint="f", architecture="phi3",
        quantisation="Q4_K_M", engine=engine, served_by="unit",
        plan=PlanInForce(context_tokens=4096, slots=slots, devices=("CUDA0",)), generated_tokens=128,
        points=(point, left_out), rating="Good",
    )  # fmt: skip


# -- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(KINDS))
def test_the_published_schema_is_that_of_the_code(name: str) -> None:
    """docs/make-schemas writes it."""
    assert json.loads((FOLDER / name).read_text()) == json.loads(text_of(name))


def test_a_result_survives_its_way_through_a_pipe() -> None:
    assert read_result(BenchResult, result().model_dump_json()) == result()


@pytest.mark.parametrize(
    "change",
    [
        {"points": [{"prompt_tokens": -1, "requests_at_once": 1}]},
        {"rating": "x" * 2000},
        {"surprise": 1},
        {"served_by": "elsewhere"},
        {"points": [{"prompt_tokens": 1, "requests_at_once": 1, "note": 3}]},
    ],
)
def test_what_another_process_says_is_judged(change: dict[str, object]) -> None:
    raw = result().model_dump(mode="json") | change
    with pytest.raises(ChildError):
        read_result(BenchResult, json.dumps(raw))


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", '{"format": "llamad-bench-1"}'])
def test_what_is_no_result_is_an_error(text: str) -> None:
    with pytest.raises(ChildError):
        read_result(BenchResult, text)


def test_the_table_has_every_point_and_no_escapes() -> None:
    text = bench_text(result().model_copy(update={"remarks": ("2 requests\x1b[31m of others",)}))
    assert "21.0 +-2%" in text
    assert "needs 33344 tokens" in text
    assert "Good: 21.0 tokens/s for one request" in text
    assert "\x1b" not in text


# -- the last time ----------------------------------------------------------------------------------------------------


def test_a_result_is_compared_with_the_last_of_its_model(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert history.last_result(state, result()) is None
    assert history.keep(state, result())
    assert history.keep(state, result(at="2026-11-02T10:00:00+00:00", engine="b11702"))
    new = result(30, 31, 32)
    old = history.last_result(state, new)
    assert old is not None and old.measured_at.startswith("2026-11-01")  # the same engine goes before the last one
    compared = history.compared(old, new)
    assert compared.differs == ()
    assert compared.changes[0] == "prompts of 512, 1 at once: prompt 21.0 -> 31.0 tokens/s (+48%)"
    assert stat.S_IMODE((state / history.FILE_NAME).stat().st_mode) == 0o600


def test_another_engine_or_plan_is_said_and_noise_is_not() -> None:
    compared = history.compared(result(), result(20.5, 21.2, 21.9, engine="b11702", slots=2))
    assert compared.changes == ()
    assert compared.differs == ("engine: b11669 -> b11702", "slots: 4 -> 2")


def test_what_is_kept_is_bounded_and_garbage_is_none(tmp_path: Path) -> None:
    for number in range(60):
        history.keep(tmp_path, result(at=f"2026-11-01T10:00:{number:02}+00:00"))
    assert len(json.loads((tmp_path / history.FILE_NAME).read_text())) == 50
    (tmp_path / history.FILE_NAME).write_text('[{"format": "x"}, 3]')
    assert history.last_result(tmp_path, result()) is None


# -- what the memory allows -------------------------------------------------------------------------------------------


def facts(*tensors: tuple[str, int], experts: int = 0, used: int = 0, tied: bool = False) -> ModelFacts:
    found = tuple(Tensor(name, (1, 1), 0, size) for name, size in tensors)
    return ModelFacts(
        path="/m.gguf", shards=(), file_bytes=1, fingerprint="f", architecture="llama", name="", file_type="F16", n_layers=3,
        n_layers_nextn=1, n_embd=1, n_vocab=1, n_ctx_train=1, n_head=(1,), n_head_kv=(1,), head_k=1, head_v=1, n_ff=(1,),
        n_expert=experts, n_expert_used=used, n_ff_expert=0, sliding_window=0, tied_embeddings=tied,
        has_chat_template=False, tensors=found, hparams={},
    )  # fmt: skip


def test_a_token_reads_the_experts_that_are_used_and_no_table_of_embeddings() -> None:
    parts = (("token_embd.weight", 1000), ("blk.0.attn_q.weight", 10), ("blk.0.ffn_up_exps.weight", 800),
             ("blk.2.attn_q.weight", 5), ("output.weight", 100))  # fmt: skip
    assert bytes_a_token(facts(*parts, experts=8, used=2)) == 10 + 200 + 100
    assert bytes_a_token(facts(*parts[:2], tied=True)) == 1010


def test_the_bound_of_weights_on_two_places_is_that_of_reading_both() -> None:
    found = expected(10**9, {"CUDA0": 0.5, "host": 0.5}, {"CUDA0": (1e12, "told"), "host": (1e11, "measured")})
    assert found is not None
    assert found.tokens_s == pytest.approx(1 / (0.0005 + 0.005))
    assert found.source == "CUDA0: told, host: measured"
    assert expected(10**9, {"Vulkan0": 1.0}, {}) is None


def test_a_device_of_an_unknown_bandwidth_has_no_bound() -> None:
    status = {"devices": [{"name": "Vulkan0", "uuid": "", "buffers_mib": 10.0}], "layers": 3, "layers_total": 3}
    assert expectation(facts(("output.weight", 100)), plan_of(status), device_shares(status)) is None


@pytest.mark.parametrize("status", [{}, {"devices": 3, "slots": "x", "layers": -1}, {"devices": [3, {"name": 4}]}])
def test_a_status_that_is_garbage_is_no_plan(status: dict[str, object]) -> None:
    assert plan_of(status).slots == 0


# -- tune -------------------------------------------------------------------------------------------------------------


def tuned(**best: int | bool | str) -> TuneResult:
    tried = (
        Tried(settings={}, speed=Figure.of([10.0, 10.1, 10.2])),
        Tried(settings={"ubatch": 64}, speed=Figure.of([20.0, 20.1, 20.2]), kept=True),
        Tried(settings={"ubatch": 1024}, refused="context 2048, it must not be below 4096"),
    )
    return TuneResult(
        llamad="0.1.0", name="phi4", measured_at="2026-11-01T10:00:00+00:00", model="/m.gguf", engine="b11669\nx = 1",
        goal="prompt", workload="prompt tokens/s", base={"ubatch": "8"}, tried=tried, best=best,
        before=Figure.of([10.0, 10.2]), after=Figure.of([20.0, 20.4]),
    )  # fmt: skip


def test_the_chart_has_bars_in_proportion_and_reasons() -> None:
    lines = tune_text(tuned(ubatch=64)).splitlines()
    bars = [line.count("#") for line in lines if "#" in line]
    assert bars == [15, 30]
    assert any("ubatch 1024" in line and "context 2048" in line for line in lines)
    assert "better: ubatch = 64: 10.1 -> 20.2 tokens/s (+100%" in lines[-1]
    assert tune_text(tuned()).splitlines()[-1].startswith("nothing beats")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "phi4.toml").write_text('model = "/m.gguf"\n[placement]\nthreads = 8\n')
    return tmp_path


def test_a_key_that_the_admin_wrote_is_written_only_if_it_may_change(root: Path) -> None:
    loaded = load_definition("phi4", root)
    with pytest.raises(ConfigError, match="is written here"):
        apply(tuned(threads=2), loaded, root, force=False)
    assert not drop_in_of(loaded).exists()
    apply(tuned(threads=2), loaded, root, force=False, may_change=("threads",))
    assert load_definition("phi4", root).definition.placement.threads == 2


def test_the_drop_in_is_in_force_says_what_was_measured_and_is_ours(root: Path) -> None:
    path = apply(tuned(ubatch=64, flash_attention=False), load_definition("phi4", root), root, force=False)
    loaded = load_definition("phi4", root)
    assert (loaded.definition.placement.ubatch, loaded.definition.placement.flash_attention) == (64, False)
    text = path.read_text()
    assert all(words in text for words in ("2026-11-01", "b11669?x = 1", "10.1 -> 20.2", f"Undo: rm {path}"))
    assert is_ours(path.read_bytes())
    assert own_keys(loaded) == {"ubatch", "flash_attention"}
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name]


def test_a_second_tune_keeps_what_the_first_one_wrote(root: Path) -> None:
    apply(tuned(ubatch=64), load_definition("phi4", root), root, force=False)
    apply(tuned(parallel=2), load_definition("phi4", root), root, force=False)
    placement = load_definition("phi4", root).definition.placement
    assert (placement.ubatch, placement.parallel) == (64, 2)


def test_a_file_that_somebody_wrote_or_edited_is_left_alone(root: Path) -> None:
    loaded = load_definition("phi4", root)
    path = drop_in_of(loaded)
    for text in ("[placement]\nubatch = 16\n", None):
        if text is None:
            apply(tuned(ubatch=64), loaded, root, force=True)
            text = path.read_text() + "# mine\n"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        for act in (lambda: require_writable(loaded, force=False), lambda: apply(tuned(ubatch=64), loaded, root, force=False)):
            with pytest.raises(ConfigError, match="by hand"):
                act()
        assert path.read_text() == text
        assert own_keys(load_definition("phi4", root)) == set()
    apply(tuned(ubatch=32), loaded, root, force=True)
    assert load_definition("phi4", root).definition.placement.ubatch == 32


def test_what_a_later_drop_in_overrides_is_not_written(root: Path) -> None:
    folder = root / "phi4.toml.d"
    folder.mkdir()
    (folder / "60-mine.toml").write_text("[placement]\nubatch = 16\n")
    with pytest.raises(ConfigError, match="is written here, after") as caught:
        apply(tuned(ubatch=64), load_definition("phi4", root), root, force=False, may_change=("ubatch",))
    assert caught.value.where is not None and caught.value.where.line == 2
    assert not (folder / "50-tune.toml").exists()


def test_what_would_be_no_definition_is_not_written(root: Path) -> None:
    with pytest.raises(ConfigError):
        apply(tuned(ubatch=-5), load_definition("phi4", root), root, force=False)
    assert not drop_in_of(load_definition("phi4", root)).exists()


def test_a_name_of_a_setting_cannot_be_more_than_a_name() -> None:
    raw = tuned().model_dump(mode="json")
    for best in ({"ubatch]\nmodel": 1}, {"kv_cache": 'f16"\n[x]'}, {"ubatch": 1.5}, {"allow_cpu": True}):
        with pytest.raises(ChildError):
            read_result(TuneResult, json.dumps(raw | {"best": best}))


def test_a_plan_with_an_expert_count_of_none_divides_by_nothing() -> None:
    assert bytes_a_token(replace(facts(("output.weight", 7)), n_expert=0)) == 7
