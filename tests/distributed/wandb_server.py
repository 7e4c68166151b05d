"""A stand-in for W&B's server on this machine: what wandb asks of it to begin, stream, resume and upload a run."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789" * 4


class Server:
    """Keeps runs by their id: `history`, one object per line as it came, `exit_code`, `name`."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.answers = threading.Event()
        """Unset: requests are taken and never answered."""
        self.answers.set()
        self.status = 200
        self.viewer: dict[str, str] | None = {"id": "u", "entity": "me", "username": "me", "flags": "{}"}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if not server.answers.is_set():
                    server.answers.wait(30)
                    return self.close_connection and None
                answer = json.dumps(server.answer(self.path, body)).encode()
                self.send_response(server.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PUT = _answer

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    @contextmanager
    def serving(self) -> Iterator["Server"]:
        """Answer within the block."""
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield self
        finally:
            self.answers.set()
            self._http.shutdown()
            self._http.server_close()

    def rows(self, run: str) -> list[dict[str, Any]]:
        """Return the history of `run` in the order of its lines, without W&B's own keys but `_step`."""
        lines = [line for _, line in sorted(self.runs[run]["history"].items())]
        return [{key: value for key, value in line.items() if key == "_step" or key[0] != "_"} for line in lines]

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path.endswith("/file_stream"):
            return self._stream(path.split("/")[-2], json.loads(body))
        if path != "/graphql":
            return {}
        asked = json.loads(body)
        variables = asked.get("variables") or {}
        words = asked["query"].replace("(", " ").replace("{", " ").split()
        return {"data": getattr(self, f"_{words[1].lower()}", lambda _: {})(variables)}

    def _viewer(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": self.viewer and self.viewer | {"email": "", "teams": {"edges": []}}}

    def _serverfeaturesquery(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _runresumestatus(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        bucket = None
        if run is not None:
            lines = [json.dumps(line) for _, line in sorted(run["history"].items())]
            bucket = {
                "id": "b", "name": variables["name"], "summaryMetrics": "{}", "displayName": run["name"],
                "logLineCount": 0, "historyLineCount": len(lines), "eventsLineCount": 0,
                "historyTail": json.dumps(lines[-1:]), "eventsTail": "[]", "config": "{}", "tags": [], "notes": None,
                "wandbConfig": '{"t": 1}',
            }  # fmt: skip
        return {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}, "bucket": bucket}}

    def _upsertbucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.setdefault(variables["name"], {"history": {}, "exit_code": None, "name": None})
        run["name"] = variables.get("displayName") or run["name"]
        project = {"id": "p", "name": variables.get("project") or "p", "entity": {"id": "e", "name": "me"}}
        bucket = {"id": "b", "name": variables["name"], "displayName": run["name"], "description": "", "config": "{}",
                  "sweepName": None, "project": project, "historyLineCount": 0}  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def _createrunfiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}

    def _stream(self, name: str, sent: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[name]
        chunk = (sent.get("files") or {}).get("wandb-history.jsonl")
        for number, line in enumerate(chunk["content"] if chunk else ()):
            run["history"][chunk["offset"] + number] = json.loads(line)
        if sent.get("complete"):
            run["exit_code"] = sent["exitcode"]
        return {}
