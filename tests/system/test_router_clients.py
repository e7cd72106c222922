"""What clients know of OpenAI's interface, against several models behind one address: the real SDK, and curl."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.models import build_tiny
from tests.support.router_unit import Router, define, routing
from tests.system.conftest import MODELS, Bed, run, wait_for

HELLO: Any = [{"role": "user", "content": "hello"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Rome"]}}, "required": ["city"]},
    },
}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools><|im_end|>\n{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def caller() -> Path:
    """A model whose template knows tools."""
    path = MODELS / "caller.gguf"
    build_tiny(path, layers=2, embd=64, chat_template=TEMPLATE)
    path.chmod(0o644)
    return path


@pytest.fixture
def router(bed: Bed, caller: Path) -> Iterator[Router]:
    with routing(bed) as made:
        define(bed, "one", model=caller, head='aliases = ["gpt-4o"]', vulkan=False)
        define(bed, "two", vulkan=False, extra="[limits]\nqueue_requests = 0\n")
        define(bed, "embed", vulkan=False, extra='[server]\nembeddings = true\npooling = "mean"\n')
        define(bed, "rank", vulkan=False, extra="[server]\nreranking = true\n")
        made.start()
        yield made


def test_the_openai_sdk(router: Router) -> None:
    client = openai.OpenAI(base_url=f"{router.url}/v1", api_key="none", timeout=60, max_retries=0)
    assert [model.id for model in client.models.list()] == ["embed", "one", "gpt-4o", "rank", "two"]
    chat = client.chat.completions
    assert chat.create(model="gpt-4o", messages=HELLO, max_tokens=3).model == "one"
    assert client.completions.create(model="one", prompt="hello", max_tokens=3).usage is not None

    # Nobody may wait for it: the first try is refused, and has it loaded for those that follow.
    with pytest.raises(openai.InternalServerError) as busy:
        chat.create(model="two", messages=HELLO, max_tokens=6)
    assert busy.value.code == "queue_full" and "retry-after" in busy.value.response.headers
    chunks = list(client.with_options(max_retries=20).chat.completions.create(
        model="two", messages=HELLO, max_tokens=6, stream=True, stream_options={"include_usage": True}
    ))  # fmt: skip
    assert {chunk.model for chunk in chunks} == {"two"}
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 6

    # Random weights call no tool: that it is told of them, and takes the result of a call, can be seen from its prompts.
    plain = chat.create(model="one", messages=HELLO, max_tokens=3).usage
    told = chat.create(model="one", messages=HELLO, max_tokens=3, tools=[TOOL]).usage
    assert plain and told and told.prompt_tokens > plain.prompt_tokens + 100
    result: Any = [*HELLO, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "1", "content": "sun"}]
    after = chat.create(model="one", messages=result, max_tokens=3, tools=[TOOL]).usage
    assert after and after.prompt_tokens > told.prompt_tokens + len('{"city": "Rome"}')
    shape: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": TOOL["function"]["parameters"]}}
    shaped = chat.create(model="one", messages=HELLO, max_tokens=200, response_format=shape).choices[0].message.content
    assert json.loads(shaped or "") == {"city": "Rome"}

    vectors = client.embeddings.create(model="embed", input=["hello", "world"]).data
    assert [len(vector.embedding) for vector in vectors] == [256, 256]
    assert abs(sum(value * value for value in vectors[0].embedding) - 1) < 0.01
    ranked: Any = client.post("/rerank", cast_to=object, body={"model": "rank", "query": "a", "documents": ["b", "c d"]})
    assert sorted(row["index"] for row in ranked["results"]) == [0, 1] and ranked["model"] == "rank"

    with pytest.raises(openai.NotFoundError) as missing:
        chat.create(model="three", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        chat.create(model="one", messages=[{"role": "user", "content": "x" * 3000}])
    assert "context" in long.value.message
    with chat.create(model="one", messages=HELLO, max_tokens=1900, stream=True) as stream:
        next(iter(stream))  # and it leaves
    wait_for(lambda: "The client left" in str([one["MESSAGE"] for one in router.events("request")]), "that is written down")
    assert chat.create(model="one", messages=HELLO, max_tokens=3).usage is not None


def test_curl(router: Router) -> None:
    def curl(*words: str, status: int = 0) -> str:
        done = run("curl", "-sS", "--fail-with-body", *words, check=False)
        assert done.returncode == status, done
        return done.stdout

    body = {"messages": HELLO, "max_tokens": 3, "model": "one"}
    assert json.loads(curl(f"{router.url}/v1/chat/completions", "-d", json.dumps(body)))["model"] == "one"
    streamed = curl("-N", f"{router.url}/v1/chat/completions", "-d", json.dumps({**body, "stream": True}))
    assert streamed.rstrip().endswith("data: [DONE]")
    vector = json.loads(curl(f"{router.url}/v1/embeddings", "-d", json.dumps({"model": "embed", "input": "hello"})))
    assert len(vector["data"][0]["embedding"]) == 256
    missing = json.loads(curl(f"{router.url}/v1/chat/completions", "-d", json.dumps({**body, "model": "x"}), status=22))
    assert missing["error"]["code"] == "model_not_found"
    refused = curl("-w", " %{http_code}", f"{router.url}/v1/chat/completions", "-d", "{", status=22)
    assert refused.endswith(" 400"), refused
    cut = ("-m", "1", f"{router.url}/v1/chat/completions", "-d", json.dumps({**body, "max_tokens": 1900}))
    assert run("curl", "-sS", *cut, check=False).returncode in (0, 28)  # it waits for a second at most
    assert json.loads(curl(f"{router.url}/v1/chat/completions", "-d", json.dumps(body)))["model"] == "one"
