"""Release folders on a Hugging Face Hub at a loopback address, which a subprocess with its own cache asks."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mrcnn_jax.cli import common
from mrcnn_jax.config import Config
from mrcnn_jax.errors import ConfigError, DownloadError
from mrcnn_jax.inference.predictor import Predictor
from mrcnn_jax.weights import hub, release

ROOT = Path(__file__).resolve().parents[2]
COMMITS = {"main": "b" * 40, "v1": "a" * 40}
needs_hub = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="the extra `hub` is not installed"
)


@pytest.mark.parametrize(
    "name", ["hf://owner", "hf://owner/name/more", "hf://owner/name@", "hf:///name", "hf://a/b@c@d"]
)
def test_malformed_name(name):
    with pytest.raises(ConfigError, match=f"{name} is not of the form hf://owner/name"):
        hub.fetch(name)


def test_two_revisions():
    with pytest.raises(ConfigError, match="with one revision"):
        hub.fetch("hf://owner/name@v1", "v2")


def test_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match=r"hf://owner/name needs .* pip install 'mrcnn-jax\[hub\]'"):
        hub.fetch("hf://owner/name")


def test_commands_and_predictors_take_names(monkeypatch):
    """`hub.fetch` and the folder are replaced by what they are given."""
    monkeypatch.setattr(hub, "fetch", lambda *name: name)
    monkeypatch.setattr(release, "read", lambda folder: (Config(name=str(folder)), None))
    parser = common.make_parser("test", "")
    common.add_model(parser)
    options, _ = common.parse(parser, ["--model=hf://owner/name@v1"])
    source = common.model_source(parser, options)
    assert source.run is None
    assert source.load()[0].name == "('hf://owner/name@v1', None)"
    monkeypatch.setattr(Predictor, "__init__", lambda self, config, _: setattr(self, "config", config))
    assert Predictor.from_pretrained("hf://owner/name", "v1").config.name == "('hf://owner/name', 'v1')"
    with pytest.raises(ConfigError, match="revision=v1 needs a name that begins with hf://"):
        Predictor.from_pretrained("maskrcnn_resnet50_fpn", "v1")


class Hub(http.server.ThreadingHTTPServer):
    """Serves files of the repository owner/name, by commit and name, and counts the requests."""

    def __init__(self, files: dict[str, dict[str, bytes]]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests = files, []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self.wfile.write(self._answer())

    def _answer(self) -> bytes:
        """Send the headers that huggingface_hub reads; return the content."""
        self.server.requests.append(f"{self.command} {self.path}")
        owner, repository, _, revision, name = (self.path.strip("/").split("/") + [""] * 5)[:5]
        commit = COMMITS.get(revision, revision)
        files = self.server.files.get(commit, {})
        error = "" if name in files else "EntryNotFound" if files else "RevisionNotFound"
        if f"{owner}/{repository}" != "owner/name":
            error = "RepoNotFound"
        content = b"" if error else files[name]
        self.send_response(404 if error else 200)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def server(variant, random_variables, tmp_path):
    """A hub with two commits of owner/name, whose configurations have other names."""
    files = {}
    for revision, commit in COMMITS.items():
        config = Config(name=f"model {revision}", model=variant("gn"))
        release.write(tmp_path / commit, config, random_variables(config.model), "")
        files[commit] = {path.name: path.read_bytes() for path in (tmp_path / commit).iterdir()}
    files["c" * 40] = {"config.json": b"{}"}
    hub = Hub(files)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield hub
    hub.shutdown()
    hub.server_close()


@pytest.fixture
def load(server, tmp_path):
    """load(name, ...): the name of the loaded configuration, or the error, in a subprocess."""

    def run(*arguments: str, **environment: str) -> str:
        program = (
            "import sys\nfrom mrcnn_jax.errors import UserError\nfrom mrcnn_jax.weights import pretrained\n"
            "name, revision = (*sys.argv[1:], None)[:2]\n"
            "try: print(pretrained.load_pretrained(name, revision=revision)[0].name)\n"
            "except UserError as error: print(error)"
        )
        settings = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "HF_HOME": str(tmp_path / "cache"),
            "HF_ENDPOINT": server.address,
            **environment,
        }
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, env=settings, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()

    return run


@needs_hub
@pytest.mark.medium
def test_download_cache_and_revisions(server, load):
    assert load("hf://owner/name") == "model main"
    assert [request for request in server.requests if "/resolve/" in request] == [
        *(f"{method} /owner/name/resolve/main/config.json" for method in ("HEAD", "GET")),
        *(f"{method} /owner/name/resolve/{'b' * 40}/model.safetensors" for method in ("HEAD", "GET")),
    ]
    server.requests.clear()
    assert load("hf://owner/name", MRCNN_JAX_OFFLINE="1") == "model main"
    assert load(f"hf://owner/name@{'b' * 40}") == "model main"
    assert "MRCNN_JAX_OFFLINE" in load("hf://owner/name@v1", MRCNN_JAX_OFFLINE="1")
    assert not server.requests
    assert load(f"hf://owner/name@{'a' * 40}") == "model v1"
    assert load("hf://owner/name", "v1") == "model v1"


@needs_hub
@pytest.mark.medium
def test_names_that_the_hub_does_not_have(load):
    assert "hf://owner/other: there is no such repository" in load("hf://owner/other")
    assert "hf://owner/name@v7: the repository has no such revision" in load("hf://owner/name@v7")
    assert "has no config.json or no model.safetensors" in load(f"hf://owner/name@{'c' * 40}")
