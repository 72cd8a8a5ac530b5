"""A bucket of Google Cloud Storage on this machine, for tests of gs:// paths.

The emulator has no conditional requests, by which tensorstore keeps writers from overwriting each other: added here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any
from unittest import mock

BUCKET = "bucket"


@contextlib.contextmanager
def serve(port: int) -> Iterator[dict[str, str]]:
    """While open, gs://bucket is there for processes with the environment variables that this gives."""
    from gcp_storage_emulator.handlers import objects
    from gcp_storage_emulator.server import create_server

    patches = {"download": _with_generation(objects.download), "_media_upload": _conditional(objects._media_upload)}
    with mock.patch.multiple(objects, **patches):
        server = create_server("localhost", port, in_memory=True, default_bucket=BUCKET)
        server.start()
        try:
            yield _environment(f"http://localhost:{port}")
        finally:
            server.stop()


def _environment(url: str) -> dict[str, str]:
    return {
        "STORAGE_EMULATOR_HOST": url,  # of gcsfs and of Google's own client, which TensorBoard files go through
        "TENSORSTORE_GCS_HTTP_URL": url,
        "FSSPEC_GCS_TOKEN": "anon",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks a service that is not here what kind of bucket it is
        "GCE_METADATA_ROOT": "localhost:1",  # there is nobody to ask for credentials
        "NO_GCE_CHECK": "true",
    }


def _with_generation(download: Any) -> Any:
    """Says which generation of the object it is; nothing else if it is the one that the reader has."""

    def handle(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> None:
        now = _generation(storage, request.params["bucket_name"], request.params["object_id"])
        if request.query.get("ifGenerationNotMatch") == [now]:
            response.status = HTTPStatus.NOT_MODIFIED
            return
        response["x-goog-generation"] = now
        download(request, response, storage, *args, **kwargs)

    return handle


def _conditional(upload: Any) -> Any:
    """Refuses to replace an object of another generation than the writer thinks."""

    def handle(request: Any, response: Any, storage: Any) -> None:
        now = _generation(storage, request.params["bucket_name"], request.query["name"][0])
        if request.query.get("ifGenerationMatch", [now]) != [now]:
            response.status = HTTPStatus.PRECONDITION_FAILED
            return
        upload(request, response, storage)

    return handle


def _generation(storage: Any, bucket: str, name: str) -> str:
    """ "0" stands for an object that is not there."""
    from gcp_storage_emulator.exceptions import NotFound

    try:
        return str(storage.get_file_obj(bucket, name)["generation"])
    except NotFound:
        return "0"
