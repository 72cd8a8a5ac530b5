"""A local emulator of Google Cloud Storage, for tests of gs:// paths.

Adds conditional requests to the emulator, which tensorstore uses against concurrent writes.
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
    """Serve gs://bucket to processes with the yielded environment variables."""
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
        "STORAGE_EMULATOR_HOST": url,  # for gcsfs and for Google's client, which writes TensorBoard files
        "TENSORSTORE_GCS_HTTP_URL": url,
        "FSSPEC_GCS_TOKEN": "anon",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # would query a service that is not emulated
        "GCE_METADATA_ROOT": "localhost:1",  # no metadata server
        "NO_GCE_CHECK": "true",
    }


def _with_generation(download: Any) -> Any:
    """Add the generation of the object to responses; send no content if the reader has this generation."""

    def handle(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> None:
        now = _generation(storage, request.params["bucket_name"], request.params["object_id"])
        if request.query.get("ifGenerationNotMatch") == [now]:
            response.status = HTTPStatus.NOT_MODIFIED
            return
        response["x-goog-generation"] = now
        download(request, response, storage, *args, **kwargs)

    return handle


def _conditional(upload: Any) -> Any:
    """Reject an upload if the object has another generation than the writer expects."""

    def handle(request: Any, response: Any, storage: Any) -> None:
        now = _generation(storage, request.params["bucket_name"], request.query["name"][0])
        if request.query.get("ifGenerationMatch", [now]) != [now]:
            response.status = HTTPStatus.PRECONDITION_FAILED
            return
        upload(request, response, storage)

    return handle


def _generation(storage: Any, bucket: str, name: str) -> str:
    """Return the generation of an object; "0" if it does not exist."""
    from gcp_storage_emulator.exceptions import NotFound

    try:
        return str(storage.get_file_obj(bucket, name)["generation"])
    except NotFound:
        return "0"
