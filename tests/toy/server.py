"""A toy of an engine's server, in the ways in which real ones go wrong.

``server.py PORT [WAY]``: ``sick`` answers ``/health`` and ends at its first request, with code 0; ``gone`` ends at
once, with code 0; ``loads`` never answers, and hears no SIGTERM; ``family`` has a process of its own; ``slow`` takes
two seconds for a completion and finishes it at SIGTERM.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer({"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 1000}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if WAY == "sick":
            os._exit(0)
        if WAY == "slow" and asked["max_tokens"] > 1:
            time.sleep(2)
        if asked["prompt"] == "refused":
            return self.answer({"error": {"message": "no"}}, 400)
        choice = {"text": f"{asked['prompt']}!", "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        return self.answer({"choices": [choice], "usage": usage, "pid": os.getpid(), "child": CHILD})

    def answer(self, document: object, status: int = 200) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        print("answered", flush=True)


PORT, WAY = int(sys.argv[1]), "".join(sys.argv[2:])
CHILD = subprocess.Popen(["sleep", "600"]).pid if WAY == "family" else None
if WAY == "gone":
    sys.exit(0)
if WAY == "loads":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("loading", flush=True)
    time.sleep(600)
server = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
server.daemon_threads = False
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
server.server_close()
