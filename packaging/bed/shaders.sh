#!/bin/sh
# Runs inside the new root at the end of its build: lets the software Vulkan device compile, once, what it needs to
# serve the tests' tiny model. Without that every model of every test run would take half a minute to start.
# Argument: the folder that holds the package tests.support.
set -eu
cd "$1"
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT

export GGML_VK_VISIBLE_DEVICES=0 MESA_SHADER_CACHE_DIR=/usr/local/lib/bed/shaders
mkdir -p "$MESA_SHADER_CACHE_DIR"
python3 -B -m tests.support.models tiny "$work/tiny.gguf" >"$work/log"

ask() {
    curl --silent --fail --max-time 300 --unix-socket "$work/llama.sock" "http://bed$1" ${2:+--data "$2"} >/dev/null
}

llama-server --model "$work/tiny.gguf" --host "$work/llama.sock" -c 8192 -np 4 -kvu -b 512 -ub 512 -fa on -fit off \
    -ngl 999 --no-ui --offline >>"$work/log" 2>&1 &
server=$!
tries=0
until ask /health; do
    tries=$((tries + 1))
    if [ "$tries" -gt 3000 ] || ! kill -0 "$server" 2>/dev/null; then
        cat "$work/log"
        exit 1
    fi
    sleep 0.1
done

ask /completion "{\"prompt\": [$(seq -s, 0 255), $(seq -s, 0 255)], \"n_predict\": 4}"
# One at a time, then four at once: other batch sizes, other shaders.
chat='{"messages": [{"role": "user", "content": "Say something"}], "max_tokens": 16}'
ask /v1/chat/completions "$chat"
pids=
for number in 1 2 3 4; do
    ask /v1/chat/completions "$chat" &
    pids="$pids $!"
done
for pid in $pids; do wait "$pid"; done
test -n "$(find "$MESA_SHADER_CACHE_DIR" -type f)"
