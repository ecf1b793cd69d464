"""A small local W&B server that keeps what it is sent, or fails in a chosen way."""

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal

Mood = Literal["good", "refuses", "hangs", "nonsense", 401, 500]  # "refuses": the test closes it
NOW = "2026-01-01T00:00:00"
KEY = "a" * 40  # has the form that the client requires


@dataclass
class Kept:
    """What the server has received of one run."""

    history: list[dict[str, Any]] = field(default_factory=list)
    events: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)  # job type, group, display name
    files: set[str] = field(default_factory=set)
    exit_code: int | None = None


class Server:
    """A context manager; the environment variables `env` lead W&B's client here.

    Args:
        mood: how the server answers; may be changed at any time.
    """

    def __init__(self, mood: Mood = "good"):
        self.mood = mood
        self.runs: dict[str, Kept] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.used: list[str] = []
        self.operations: list[str] = []
        self.unknown: list[str] = []
        self._closed = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                owner._answer(self)

            do_GET = do_PUT = do_POST

            def log_message(self, *arguments: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # clients may disconnect at any time
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.env = {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}

    def __enter__(self) -> "Server":
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Refuses connections from now on."""
        if not self._closed.is_set():
            self._closed.set()
            self._http.shutdown()
            self._http.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        code, answer = 200, {}
        path = request.path
        if self.mood == "hangs":
            self._closed.wait()
            return
        if isinstance(self.mood, int):
            code = self.mood
        elif path == "/graphql":
            asked = json.loads(body)
            name = asked.get("operationName") or "unnamed"
            self.operations.append(name)
            if self.mood == "nonsense":
                answer = {"data": {"viewer": 3, "model": []}}
            else:
                answer = {"data": self._graphql(name, asked)}
        elif path.endswith("/file_stream"):
            self._stream(path.split("/")[-2], json.loads(body))
        data = json.dumps(answer).encode()
        request.send_response(code)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _graphql(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        v = asked.get("variables") or {}
        if name == "Viewer":
            return {
                "viewer": {"id": "u", "entity": "nobody", "username": "nobody", "flags": "{}", "teams": {"edges": []}}
            }
        if name == "RunResumeStatus":
            kept = self.runs.get(v["name"])
            entity = {"id": "e", "name": "nobody"}
            bucket = kept and {
                "id": v["name"],
                "name": v["name"],
                "displayName": kept.about["displayName"],
                "summaryMetrics": "{}",
                "logLineCount": 0,
                "historyLineCount": len(kept.history),
                "eventsLineCount": kept.events,
                "historyTail": json.dumps([json.dumps(kept.history[-1])] if kept.history else []),
                "eventsTail": "[]",
                "config": json.dumps(kept.config),
                "tags": [],
                "notes": None,
                "wandbConfig": json.dumps({"t": 1}),
            }
            return {"model": {"id": "p", "name": v["project"], "entity": entity, "bucket": bucket}}
        if name == "UpsertBucket":
            new = v["name"] is not None and v["name"] not in self.runs
            kept = self.runs.setdefault(v["name"] or v["id"], Kept())
            kept.about |= {k: v[k] for k in ("jobType", "groupName", "displayName", "project") if v[k] is not None}
            kept.about.setdefault("displayName", "x")
            if v["config"]:
                kept.config |= json.loads(v["config"])
            project = {"id": "p", "name": v["project"] or "p", "entity": {"id": "e", "name": "nobody"}}
            run = v["name"] or v["id"]
            bucket = {
                "id": run,
                "name": run,
                "displayName": kept.about["displayName"],
                "description": "",
                "config": json.dumps(kept.config),
                "sweepName": None,
                "project": project,
                "historyLineCount": len(kept.history),
            }
            return {"upsertBucket": {"bucket": bucket, "inserted": new}}
        if name == "CreateRunFiles":
            files = [{"name": n, "uploadUrl": f"{self.url}/storage/{n}"} for n in v["files"]]
            self.runs[v["run"]].files |= set(v["files"])
            return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}
        if name == "CreateArtifact":  # COMMITTED: the server claims to have the files, so nothing is uploaded
            self.artifacts.append(v["input"])
            about = {
                "id": f"A{len(self.artifacts)}",
                "state": "COMMITTED",
                "artifactSequence": {"latestArtifact": None},
            }
            return {"createArtifact": {"artifact": about}}
        if name == "UseArtifact":
            self.used.append(v["input"])
            return {"useArtifact": {"artifact": {"id": v["input"]["artifactID"]}}}
        if "mutation UseArtifact(" in asked["query"]:
            self.used.append(v)
            return {"useArtifact": {"artifact": self._artifact(int(v["artifactID"][1:]))}}
        if "query ArtifactByID" in asked["query"]:
            return {"artifact": self._artifact(int(v["id"][1:]))}
        if "query ArtifactMembershipByName" in asked["query"]:
            wanted = v["name"].partition(":")[0]
            ids = [n for n, a in enumerate(self.artifacts, 1) if a["artifactCollectionName"] == wanted]
            found = self._artifact(ids[-1]) if ids else None
            collection = found and found["artifactSequence"]
            about = {"__typename": "ArtifactCollectionMembership", "id": "m", "versionIndex": 0, "createdAt": NOW}
            member = found and about | {"aliases": [], "artifactCollection": collection, "artifact": found}
            return {"project": {"artifactCollectionMembership": member}}
        self.unknown.append(json.dumps(asked))
        return {"project": None}

    def _artifact(self, number: int) -> dict[str, Any]:
        made = self.artifacts[number - 1]
        project = {"__typename": "Project", "id": "p", "internalId": "cDoxOg==", "name": made["projectName"]}
        project["entity"] = {"name": "nobody"}
        sequence = {"__typename": "ArtifactSequence", "name": made["artifactCollectionName"], "project": project}
        return {
            "__typename": "Artifact", "id": f"A{number}", "artifactSequence": sequence, "versionIndex": 0,
            "artifactType": {"name": made["artifactTypeName"]}, "description": None, "metadata": made["metadata"],
            "ttlDurationSeconds": -2, "ttlIsInherited": True, "tags": [], "historyStep": None, "state": "COMMITTED",
            "size": 1, "digest": made["digest"], "commitHash": "c", "fileCount": 1, "createdAt": NOW,
            "updatedAt": None, "aliases": [],
        }  # fmt: skip

    def _stream(self, run: str, sent: dict[str, Any]) -> None:
        kept = self.runs[run]
        for name, part in (sent.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                at = part["offset"]
                kept.history[at : at + len(part["content"])] = map(json.loads, part["content"])
            elif name == "wandb-events.jsonl":
                kept.events = part["offset"] + len(part["content"])
        if sent.get("complete"):
            kept.exit_code = sent.get("exitcode")
