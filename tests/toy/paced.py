"""A toy engine that speaks OpenAI's API at a pace: so many slots, so long a step, so many tokens of prompt a second.

What it says is known beforehand: token ``i`` of every answer is ``"<i> "``. ``GET /toy`` tells what it did. Like
vLLM, it asks for the key in ``VLLM_API_KEY``, where there is one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MODEL = "toy"
CHARACTERS_PER_TOKEN = 4
BLOCK = 64
DEATH = "the engine is dead"


@dataclass(eq=False)
class Sequence:
    prompt: str
    max_tokens: int
    is_read: bool = False
    """Whether another toy has read its prompt."""
    tokens: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    made: int = 0
    gone: bool = False


class Toy:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.known: set[str] = set()
        self.dead = False
        self.wake = asyncio.Event()
        self.done = self.cancelled = self.read_tokens = self.most = self.gave = self.took = self.steps = 0

    async def work(self) -> None:
        """Step after step, like an engine with continuous batching."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            self.running = [each for each in self.running if not each.gone and each.made < each.max_tokens]
            new_tokens = 0
            while self.waiting and len(self.running) < self.arguments.slots:
                sequence = self.waiting.popleft()
                if not sequence.gone:
                    self.running.append(sequence)
                    new_tokens += 1 if sequence.is_read else self.unread(sequence.prompt)
            if not self.running:
                self.wake.clear()
                await self.wake.wait()
                due = loop.time()
                continue
            self.most = max(self.most, len(self.running))
            self.steps += 1
            if self.steps > self.arguments.dies_after:
                self.die()
            if self.steps > self.arguments.hangs_after or self.dead:
                await asyncio.Event().wait()
            self.read_tokens += new_tokens
            due = max(due, loop.time() - 0.02) + self.arguments.step_s + new_tokens / self.arguments.prefill
            await asyncio.sleep(due - loop.time())
            for sequence in self.running:
                sequence.tokens.put_nowait(f"{sequence.made} ")
                sequence.made += 1

    def die(self) -> None:
        """Like an engine that died behind its server: every answer ends in an error."""
        self.dead = True
        for sequence in [*self.running, *self.waiting]:
            sequence.tokens.put_nowait("")

    def unread(self, prompt: str) -> int:
        """Tokens of a prompt that are in no cache."""
        size = BLOCK * CHARACTERS_PER_TOKEN
        ends = range(size, len(prompt) + 1, size)
        cached = max((end for end in ends if prompt[:end] in self.known), default=0)
        self.known |= {prompt[:end] for end in ends}
        return max(1, (len(prompt) - cached) // CHARACTERS_PER_TOKEN)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        chat = request.path.endswith("chat/completions")
        try:
            asked = await request.json()
        except ValueError:
            return refuse(400, "not JSON")
        if asked.get("model") != MODEL:
            return refuse(404, "no such model")
        if self.dead:
            return refuse(500, DEATH)
        if len(self.waiting) >= self.arguments.queue:
            return refuse(503, "the queue is full")
        prompt = str(asked.get("messages") if chat else asked.get("prompt"))
        if "fail" in prompt and self.arguments.fails:
            return refuse(500, "as asked")
        transfer = asked.get("kv_transfer_params") or {}
        sequence = Sequence(prompt, int(asked.get("max_tokens") or 16), bool(transfer.get("do_remote_prefill")))
        self.took += sequence.is_read
        self.waiting.append(sequence)
        self.wake.set()
        try:
            if asked.get("stream"):
                return await self.stream(request, sequence, chat, asked)
            text = "".join([await sequence.tokens.get() for _ in range(sequence.max_tokens) if not self.dead])
            if self.dead:
                return refuse(500, DEATH)
            self.done += 1
            gives = bool(transfer.get("do_remote_decode"))
            self.gave += gives
            given = {"kv_transfer_params": {"do_remote_prefill": True}} if gives else {}
            return web.json_response(whole(text, chat, usage(sequence)) | given)
        finally:
            sequence.gone = True
            self.cancelled += sequence.made < sequence.max_tokens

    async def stream(self, request: web.Request, sequence: Sequence, chat: bool, asked: dict) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)

        async def say(choices: list, **more: object) -> None:
            kind = "chat.completion.chunk" if chat else "text_completion"
            event = {"id": "toy-1", "object": kind, "created": 1, "model": MODEL, "choices": choices, **more}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())

        if chat:
            await say([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        for i in range(sequence.max_tokens):
            text = await sequence.tokens.get()
            if self.dead:
                await response.write(f"data: {json.dumps(error(500, DEATH))}\n\ndata: [DONE]\n\n".encode())
                return response
            end = "length" if i == sequence.max_tokens - 1 else None
            part = {"delta": {"content": text}} if chat else {"text": text}
            await say([{"index": 0, **part, "finish_reason": end}])
        if (asked.get("stream_options") or {}).get("include_usage"):
            await say([], usage=usage(sequence))
        await response.write(b"data: [DONE]\n\n")
        self.done += 1
        return response


def usage(sequence: Sequence) -> dict[str, int]:
    prompt = max(1, len(sequence.prompt) // CHARACTERS_PER_TOKEN)
    total = prompt + sequence.max_tokens
    return {"prompt_tokens": prompt, "completion_tokens": sequence.max_tokens, "total_tokens": total}


def whole(text: str, chat: bool, used: dict[str, int]) -> dict[str, object]:
    part = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    kind = "chat.completion" if chat else "text_completion"
    choices = [{"index": 0, **part, "finish_reason": "length"}]
    return {"id": "toy-1", "object": kind, "created": 1, "model": MODEL, "choices": choices, "usage": used}


def refuse(status: int, message: str) -> web.Response:
    return web.json_response(error(status, message), status=status)


def error(status: int, message: str) -> dict[str, object]:
    return {"error": {"message": message, "type": "toy_error", "param": None, "code": status}}


async def main(arguments: argparse.Namespace) -> None:
    await asyncio.sleep(arguments.start_s)
    toy = Toy(arguments)
    key = os.environ.get("VLLM_API_KEY")

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        shown = request.headers.get("Authorization")
        if key and request.path.startswith("/v1") and shown != f"Bearer {key}":
            return refuse(401, "not with this key")
        return await handler(request)

    app = web.Application(middlewares=[guard])
    for path in ("/v1/completions", "/v1/chat/completions"):
        app.router.add_post(path, toy.answer)

    async def health(request: web.Request) -> web.Response:
        return web.Response(status=503 if toy.dead else 200)

    async def models(request: web.Request) -> web.Response:
        entry = {"id": MODEL, "object": "model", "owned_by": "toy", "max_model_len": 4096}
        return web.json_response({"object": "list", "data": [entry]})

    async def tell(request: web.Request) -> web.Response:
        names = ("done", "cancelled", "read_tokens", "most", "gave", "took")
        facts = {name: getattr(toy, name) for name in names}
        return web.json_response(facts | {"running": len(toy.running), "waiting": len(toy.waiting)})

    app.router.add_get("/health", health)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/toy", tell)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, arguments.host, arguments.port).start()
    await toy.work()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--step-s", type=float, default=0.02)
    parser.add_argument("--prefill", type=float, default=20_000.0, help="tokens of prompts a second")
    parser.add_argument("--queue", type=int, default=1_000_000, help="requests that wait at most")
    parser.add_argument("--start-s", type=float, default=0.0)
    parser.add_argument("--hangs-after", type=int, default=1_000_000_000, help="steps; it goes on to answer /health")
    parser.add_argument("--dies-after", type=int, default=1_000_000_000, help="steps; its server goes on")
    parser.add_argument("--fails", action="store_true", help="answer 500 where a prompt holds 'fail'")
    asyncio.run(main(parser.parse_args()))
