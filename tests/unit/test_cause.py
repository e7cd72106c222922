"""Deaths and their names: texts from the sources of the backends, logs of the real llama-server, and what we know else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llamad.errors import ExitCode
from llamad.supervision.cause import Death, cause_of_trouble, classify
from llamad.supervision.causes import CAUSES, Policy
from llamad.supervision.intake import Intake
from llamad.units import MIB
from tests.support.exits import EXITS, Exit
from tests.support.fakes import FakeReporter

DATA = Path(__file__).parents[1] / "data/causes"
CASES = [
    (1, ["error: invalid argument: --mlock"], "bad-flag"),
    (1, ["E couldn't bind HTTP server socket, hostname: /run/x.sock, port: 0"], "address-in-use"),
    (-6, ["/build/ggml-cuda.cu:109: CUDA error"], "gpu-error"),
    (-11, [], "without-a-word"),
    (-9, [], "killed"),
    (0, [], "exit"),
    (3, ["some words"], "exit"),
]


@pytest.mark.parametrize(("code", "lines", "name"), CASES)
def test_names(code: int, lines: list[str], name: str) -> None:
    assert classify(Death(code, lines)).name == name


def backend_texts() -> Iterator[tuple[str, Death]]:
    text = re.sub(r"^#.*\n", "", (DATA / "backends.txt").read_text(), flags=re.M)
    for block in re.split(r"^(?=\S)", text, flags=re.M)[1:]:
        head, *lines = block.splitlines()
        name, code, stage = (word.strip() for word in head.split("|"))
        free = re.search(r"free=(\d+)", stage)
        yield name, Death(
            int(code), [line[2:] for line in lines], served=stage.startswith("served"), warming=stage == "warming",
            free_bytes=int(free[1]) * MIB if free else None,
        )  # fmt: skip


@pytest.mark.parametrize(("name", "death"), list(backend_texts()), ids=lambda value: value if isinstance(value, str) else "")
def test_texts_of_every_backend(name: str, death: Death) -> None:
    assert classify(death).name == name


def log_of(case: Exit) -> list[str]:
    """What the supervisor would have kept of this log."""
    intake = Intake(FakeReporter(), 1000)
    intake.feed(1, (DATA / f"{case.name}.log").read_bytes())
    return intake.evidence()


@pytest.mark.parametrize("case", EXITS, ids=lambda case: case.name)
def test_logs_of_the_real_server(case: Exit) -> None:
    death = Death(case.code, log_of(case), address_space_limited=case.prefix[:1] == ("prlimit",))
    assert classify(death).name == case.cause


def test_without_a_limit_on_the_address_space_it_is_the_hosts_memory() -> None:
    case = next(case for case in EXITS if case.name == "address-space-of-context")
    assert classify(Death(1, log_of(case))).name == "host-out-of-memory"


def test_never_by_the_exit_code() -> None:
    for case in EXITS:
        if case.code == 1:
            death = Death(3, log_of(case), address_space_limited=case.prefix[:1] == ("prlimit",))
            assert classify(death).name == case.cause


def test_the_first_telling_line_decides() -> None:
    lines = ["cudaMalloc failed: out of memory", "error loading model vocabulary"]
    assert classify(Death(1, lines)).name == "gpu-out-of-memory"
    assert classify(Death(1, lines[::-1])).name == "model-bad"


def test_the_kernels_killer_is_told_from_a_persons_kill() -> None:
    assert classify(Death(-9, [], oom_kills=1)).name == "host-out-of-memory"
    assert classify(Death(-9, ["cudaMalloc failed: out of memory"], oom_kills=1)).name == "host-out-of-memory"


def test_what_we_did_ourselves_is_not_blamed_on_others() -> None:
    assert classify(Death(-9, ["cudaMalloc failed: out of memory"], killed_because="stop")).name == "stopped"
    assert classify(Death(-9, [], killed_because="stalled")).name == "start-stalled"
    assert classify(Death(-9, ["E whatever"], killed_because="hang", served=True)).name == "hang"


def test_a_buffer_that_could_not_be_had_is_why_a_child_was_condemned() -> None:
    """llama-server ignores what fails in its warm-up, says that it is ready, and we end it."""
    lines = ["ggml_gallocr_reserve_n_impl: failed to allocate CUDA0 buffer of size 1000", "srv  listening"]
    assert classify(Death(-9, lines, killed_because="placement")).name == "gpu-out-of-memory-compute"
    assert classify(Death(-9, lines, killed_because="warm-up", warming=True)).name == "gpu-out-of-memory-warm-up"
    assert classify(Death(-9, lines[1:], killed_because="placement")).name == "placement"


def test_final_causes_name_the_exit_code_of_the_service() -> None:
    cause = classify(Death(1, ["error: invalid device: CUDA0"]))
    assert cause.final and cause.exit_code is ExitCode.NO_DEVICE


def test_lines_of_a_server_that_served_may_quote_clients_and_never_decide() -> None:
    quoted = ['got exception: {"message": "cannot resolve $ref #/unknown model architecture"}', "Permission denied",
              "srv  x: CUDA error: out of memory"]  # fmt: skip
    assert classify(Death(-9, quoted, served=True)).name == "killed"
    assert classify(Death(-6, quoted, served=True)).name in ("crash", "without-a-word")
    assert classify(Death(1, quoted)).final
    assert classify(Death(-6, [*quoted, "CUDA error: out of memory"], served=True)).name == "gpu-out-of-memory-running"


def test_each_policy_has_the_exit_code_that_fits_it() -> None:
    retried = {ExitCode.NO_MODEL_FILE, ExitCode.NO_DEVICE, ExitCode.TEMPORARY}
    for cause in CAUSES.values():
        assert cause.fix or cause.name == "stopped"
        if cause.policy is Policy.WAIT:
            assert cause.exit_code in retried
        elif cause.policy is Policy.GIVE_UP:
            assert cause.exit_code not in retried and cause.exit_code is not ExitCode.CRASH_LOOP
    assert all(CAUSES[name].policy is Policy.STEP_DOWN for name in CAUSES if name.startswith("gpu-out-of-memory"))


def test_batches_that_fail_condemn_only_where_memory_is_short() -> None:
    assert cause_of_trouble(9000 * MIB) is None
    for free_bytes in (10 * MIB, None):
        trouble = cause_of_trouble(free_bytes)
        assert trouble is not None and trouble.policy is Policy.STEP_DOWN


def test_any_text_is_classified() -> None:
    death = Death(1, ["\x00" * 100, "é" * 8000, "(" * 500, "error: " * 200])
    for code in (0, 1, 255, -6, -64, -99):
        assert classify(replace(death, returncode=code)).text
