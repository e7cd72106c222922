"""`--help` of every verb: what it is for, and examples that the parser understands."""

from __future__ import annotations

import argparse
import importlib
import shlex

import pytest

from llamad.cli.grammar import make_parser
from llamad.cli.main import main, print_error
from llamad.errors import BusyError, ConfigError, ConfigErrors, LlamadError, Where


def verbs() -> dict[str, argparse.ArgumentParser]:
    [found] = [action.choices for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found)


def examples(verb: str) -> list[str]:
    text = verbs()[verb].format_help()
    return [line.strip() for line in text.partition("examples:\n")[2].splitlines() if line.strip()]


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_has_examples_that_are_right(verb: str) -> None:
    found = examples(verb)
    assert found and all(line.startswith(f"llamad {verb}") for line in found)
    for line in found:
        words = shlex.split(line, comments=True)[1:]
        ends = [words.index(mark) for mark in ("|", "||", "&&", ">") if mark in words]
        args = make_parser().parse_args(words[: min(ends, default=len(words))])
        assert args.verb == verb


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_and_option_says_what_it_is(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and text.isascii() and "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 120
    for action in verbs()[verb]._actions:
        assert action.help or not action.option_strings, f"{verb} {action.option_strings} says nothing"
    assert callable(importlib.import_module(f"llamad.cli.{verb}").run)


@pytest.mark.parametrize("words", ["a=1 b=2 --context 5", "--context 5 a=1 b=2", "a=1 --context 5 b=2"])
def test_assignments_may_stand_anywhere(words: str) -> None:
    args = make_parser().parse_args(["add", "phi4", "m.gguf", *words.split()])
    assert (args.assignments, args.context, args.file) == (["a=1", "b=2"], "5", "m.gguf")


def test_the_whole_help_lists_all_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n    {verb} " in text for verb in verbs())


@pytest.mark.parametrize("words", [[], ["nonsense"], ["status", "--watch", "x"], ["status", "--watch", "0"], ["top", "--every", "nan"]])
def test_wrong_words_are_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 64 and "usage: llamad" in capsys.readouterr().err


def test_an_error_says_nothing_that_a_terminal_would_obey(capsys: pytest.CaptureFixture[str]) -> None:
    bad = "a\x1b]0;b\x07\r\u202e\udcff"
    problems: list[LlamadError] = [ConfigError(bad, where=Where(f"/{bad}", 1, 1)), ConfigError("two")]
    for error in (BusyError(bad, why=bad, fix=bad), *problems, ConfigErrors(problems)):
        print_error(error)
    said = capsys.readouterr().err
    assert all(line.isprintable() for line in said.split("\n")) and "a\\x1b]0;b" in said
    assert said.count("two") == 2 and len(said.splitlines()) == 7
