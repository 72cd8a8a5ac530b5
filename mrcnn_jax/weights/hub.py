"""Release folders in repositories of the Hugging Face Hub, by names such as hf://owner/name or hf://owner/name@COMMIT.

Needs the package huggingface_hub (the extra `hub`), whose cache, token and environment variables apply (HF_HOME,
HF_TOKEN, HF_ENDPOINT). With MRCNN_JAX_OFFLINE=1 only its cache is read.
"""

from __future__ import annotations

import re
from pathlib import Path

from mrcnn_jax.errors import DISK_FULL, ConfigError, DownloadError, format_error
from mrcnn_jax.runtime.download import is_offline
from mrcnn_jax.weights.release import CONFIG, WEIGHTS

PREFIX = "hf://"
_NOT_CACHED = (
    "it is not in the cache of huggingface_hub, and the network is off (MRCNN_JAX_OFFLINE, HF_HUB_OFFLINE) or does not"
    f" answer: run the same command once with a network, or copy {CONFIG} and {WEIGHTS} into a folder and give its path"
)
_NAME = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def fetch(name: str, revision: str | None = None) -> Path:
    """Download the release folder that `name` names, or find it in the cache, and return its path.

    Both files are of one commit, also if the repository changes meanwhile. A commit that is in the cache is used
    without asking the network.

    Args:
      name: "hf://owner/name", or "hf://owner/name@REVISION".
      revision: a branch, tag or full commit hash. Default: the newest commit of the branch main.

    Raises ConfigError for a malformed name, DownloadError if the folder cannot be downloaded.
    """
    match = _NAME.fullmatch(name)
    if match is None or (match[2] and revision):
        raise ConfigError(f"{name} is not of the form hf://owner/name or hf://owner/name@REVISION, with one revision")
    repository, revision = match[1], match[2] or revision
    try:
        import huggingface_hub
    except ImportError:
        raise DownloadError(f"{name} needs the package huggingface_hub: pip install 'mrcnn-jax[hub]'") from None
    offline = is_offline()
    if offline or re.fullmatch("[0-9a-f]{40}", revision or ""):
        files = [
            huggingface_hub.try_to_load_from_cache(repository, file, revision=revision) for file in (CONFIG, WEIGHTS)
        ]
        if all(isinstance(path, str) for path in files):
            return Path(str(files[0])).parent
    if offline:
        raise DownloadError(f"{name}: {_NOT_CACHED}")
    try:
        config = huggingface_hub.hf_hub_download(repository, CONFIG, revision=revision)
        folder = Path(config).parent  # named after the commit
        huggingface_hub.hf_hub_download(repository, WEIGHTS, revision=folder.name)
    except Exception as error:  # of many kinds, which depend on its version
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        raise DownloadError(f"{name}: {_describe(error)}") from error
    return folder


def _describe(error: Exception) -> str:
    """What went wrong, and what to do."""
    from huggingface_hub import errors

    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repository, or it is private: check the name, or log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision: give a branch, a tag or a full commit hash"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _NOT_CACHED
    if isinstance(error, errors.EntryNotFoundError):
        return f"the repository has no {CONFIG} or no {WEIGHTS}: it was not written by `mrcnn export`"
    return f"it cannot be downloaded ({format_error(error)})"
