"""How many tokens an answer took, as llama-server says at its end. Pure.

Only the beginning and the end of an answer are looked at, so a stream is never gathered. Text of the model cannot
pass for figures: inside a JSON string every quotation mark has a backslash before it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

TAIL_BYTES = 4096
HEAD_BYTES = 512
_TIMINGS = re.compile(rb'"timings":\{([^{}]{1,2000})\}')
_NUMBER = re.compile(rb'(?<!\\)"([a-z_]{1,40})":([0-9]{1,15}(?:\.[0-9]{1,20})?)')
_PROMPT = ("prompt_tokens", "input_tokens")
_OUTPUT = ("completion_tokens", "output_tokens")
_CACHED = ("cached_tokens", "cache_read_input_tokens")


class Usage(NamedTuple):
    """Tokens of one request. cached: of the prompt, not computed again.  output_s: the time that the output took,
    0 where it is not known."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    output_s: float


def read_usage(head: bytes, tail: bytes) -> Usage | None:
    """From the first and the last bytes of an answer; None where nothing is told."""
    timings = _TIMINGS.findall(tail)
    if timings:
        told = _numbers(timings[-1])
        if "prompt_n" in told and "predicted_n" in told:
            cached = int(told.get("cache_n", 0))
            prompt = int(told["prompt_n"]) + cached
            return Usage(prompt, cached, int(told["predicted_n"]), told.get("predicted_ms", 0.0) / 1000)
    for part in (tail, head):
        at = part.rfind(b'"usage":{')
        told = _numbers(part[at : at + 400]) if at >= 0 else {}
        prompts = [int(told[key]) for key in _PROMPT if key in told]
        if prompts:
            output = next((int(told[key]) for key in _OUTPUT if key in told), 0)
            cached = next((int(told[key]) for key in _CACHED if key in told), 0)
            return Usage(prompts[0], cached, output, 0.0)
    return None


def _numbers(text: bytes) -> dict[str, float]:
    return {name.decode(): float(value) for name, value in _NUMBER.findall(text)}
