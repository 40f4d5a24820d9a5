"""What reaches a hub: the model and its card, and nothing that only this machine has."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from penchant.commands.push import push
from penchant.core.errors import ConfigError, ModelError

TOKEN = "hf_right"


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks for to upload: the place, which files are large, the commit."""

    asked: list[tuple[str, Any]]
    large: dict[str, bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid credentials in Authorization header"})
            return
        lines = [json.loads(line) for line in body.splitlines()]
        self.asked.append((self.path, lines))
        name = "/api/models/owner/name"
        if self.path == "/api/repos/create":
            self._answer(200, {"url": f"{self._host}/owner/name"})
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif self.path == f"{name}/preupload/main":
            files = [
                {"path": one["path"], "shouldIgnore": False, "uploadMode": _mode(one["path"])}
                for one in lines[0]["files"]
            ]
            self._answer(200, {"files": files})
        elif self.path == "/owner/name.git/info/lfs/objects/batch":
            objects = [
                {**one, "actions": {"upload": {"href": f"{self._host}/large/{one['oid']}"}}}
                for one in lines[0]["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif self.path == f"{name}/commit/main":
            where = f"{self._host}/owner/name/commit/{'0' * 40}"
            self._answer(200, {"success": True, "commitOid": "0" * 40, "commitUrl": where})
        else:
            self._answer(404, {"error": "not here"})

    def do_PUT(self) -> None:
        oid = self.path.rpartition("/")[2]
        self.large[oid] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, {})

    @property
    def _host(self) -> str:
        return f"http://{self.headers['Host']}"

    def _answer(self, status: int, record: dict[str, Any]) -> None:
        body = json.dumps(record).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Write nothing to the terminal."""


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    handler = type("OneHub", (Hub,), {"asked": [], "large": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def pushed(address: str, *words: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: the hub's address is read when its client is."""
    environment = {
        **os.environ, "HF_ENDPOINT": address, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "penchant", "push", *words],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_model_and_card_arrive_and_name_no_folder_of_this_machine(
    adapter_run: Path, hub: tuple[str, type[Hub]]
) -> None:
    address, seen = hub
    done = pushed(address, str(adapter_run), "owner/name", "--base", "owner/base")
    assert done.returncode == 0, done.stderr
    assert f"model: {address}/owner/name" in done.stdout
    (created,) = next(lines for path, lines in seen.asked if path == "/api/repos/create")
    assert created["visibility"] == "private"
    commit = next(lines for path, lines in seen.asked if path.endswith("/commit/main"))
    small = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]).decode()
        for line in commit
        if line["key"] == "file"
    }
    large = {line["value"]["path"]: line["value"]["oid"] for line in commit
             if line["key"] == "lfsFile"}  # fmt: skip
    weights = (adapter_run / "model" / "adapter_model.safetensors").read_bytes()
    assert seen.large[large["adapter_model.safetensors"]] == weights
    assert json.loads(small["adapter_config.json"])["base_model_name_or_path"] == "owner/base"
    assert 'AutoPeftModelForCausalLM.from_pretrained("owner/name")' in small["README.md"]
    assert "base_model: owner/base" in small["README.md"]
    assert "vllm serve owner/base" in small["README.md"]
    assert {"tokenizer.json", "tokenizer_config.json"} <= {*small}
    assert not [name for name, text in small.items() if str(adapter_run.parents[1]) in text]


def test_the_hubs_refusal_is_told_in_a_line(adapter_run: Path, hub: tuple[str, type[Hub]]) -> None:
    words = (str(adapter_run), "owner/name", "--base", "owner/base")
    done = pushed(hub[0], *words, token="hf_wrong")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "did not take owner/name" in done.stderr and "hf auth whoami" in done.stderr
    absent = pushed("http://127.0.0.1:9", *words)
    assert absent.returncode == 1 and "Traceback" not in absent.stderr
    assert "http://127.0.0.1:9 did not take owner/name" in absent.stderr


def test_a_dry_run_shows_what_would_go(adapter_run: Path) -> None:
    shown = push(adapter_run, "owner/name", base="owner/base", dry_run=True)
    assert shown.url is None
    saved = adapter_run / "model" / "adapter_model.safetensors"
    assert shown.files["adapter_model.safetensors"] == saved.stat().st_size
    assert shown.files["README.md"] == len(shown.card.encode())


def test_what_others_could_not_load_is_refused(adapter_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"stands on .*which others do not have.*--base"):
        push(adapter_run, "owner/name", dry_run=True)
    with pytest.raises(ModelError, match=r"penchant merge .* makes it"):
        push(adapter_run, "owner/name", merged=True, dry_run=True)
    with pytest.raises(ConfigError, match="no name on the hub"):
        push(adapter_run, "name", dry_run=True)
    whole = tmp_path / "run"
    shutil.copytree(adapter_run, whole)
    (whole / "model" / "adapter_config.json").unlink()
    (whole / "model" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="--base is of an adapter"):
        push(whole, "owner/name", base="owner/base", dry_run=True)
