"""Access to the Hugging Face Hub and its cache with huggingface_hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from featuretap.catalogue.pretrained import CHECKPOINT_SUFFIXES
from featuretap.support.errors import WeightsError
from featuretap.support.extras import check_modules
from featuretap.support.text import one_line
from featuretap.weights.files import CONFIG, FILES, INDEX_SUFFIX
from featuretap.weights.open_file import OpenFile
from featuretap.weights.shards import list_shards

SITE = "https://huggingface.co"

LOGIN = "log in with 'hf auth login'"


def find_in_cache(repository: str, revision: str | None, name: str) -> Path | None:
    """Return a file of a repository from the cache, or None.

    Args:
        repository: "owner/name".
        revision: branch, tag or commit; None for the main branch.
        name: name of the file.

    Returns:
        The path of the file.
    """
    if find_spec("huggingface_hub") is None:
        return None
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def fetch_file(
    repository: str, revision: str | None, name: str, *, site: str = SITE, cached_only: bool = False
) -> Path:
    """Return a file of a repository, downloaded into the cache if necessary.

    Args:
        repository: "owner/name".
        revision: branch, tag or commit; None for the main branch.
        name: name of the file.
        site: address of the hub or of a mirror.
        cached_only: use the cache only, without downloads.

    Returns:
        The path of the file.

    Raises:
        Exception: an error of huggingface_hub or of its dependencies; see `explain`.
    """
    import huggingface_hub

    endpoint = None if site == SITE else site
    return Path(
        huggingface_hub.hf_hub_download(
            repository, name, revision=revision, endpoint=endpoint, local_files_only=cached_only
        )
    )


def fetch_model(repository: str, revision: str | None, *, site: str = SITE, cached_only: bool = False) -> Path:
    """Return the first of `FILES` in a repository. Its shards and `config.json` are fetched into the same folder.

    Args:
        repository: as for `fetch_file`.
        revision: as for `fetch_file`.
        site: as for `fetch_file`.
        cached_only: as for `fetch_file`.

    Returns:
        The path of the file.

    Raises:
        Exception: an error of huggingface_hub or of its dependencies; see `explain`.
    """
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def fetch(name: str, revision: str | None) -> Path | None:
        try:
            return fetch_file(repository, revision, name, site=site, cached_only=cached_only)
        except EntryNotFoundError as error:
            # LocalEntryNotFoundError is also raised if the hub cannot be reached, when the file may exist.
            if isinstance(error, LocalEntryNotFoundError) and not cached_only:
                raise
            missing.append(error)
            return None

    missing: list[Exception] = []
    for name in FILES:
        path = fetch(name, revision)
        if path:
            parts = list_shards(OpenFile(path), CHECKPOINT_SUFFIXES) if name.endswith(INDEX_SUFFIX) else ()
            for other in (CONFIG, *(part.name for part in parts)):
                # The folder in the cache is named by the commit, so all files are from the same commit.
                fetch(other, path.parent.name)
            return path
    raise missing[0]


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Upload the files of a folder to a repository, which is created if it does not exist.

    Args:
        folder: the folder.
        repository: "owner/name".
        private: make a new repository private.

    Returns:
        The URL of the repository.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        WeightsError: the hub refuses the upload or cannot be reached.
    """
    check_modules("registry.push", ("huggingface_hub",))
    import huggingface_hub

    hub = huggingface_hub.HfApi()
    try:
        address = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload weights with featuretap")
    except Exception as error:
        # huggingface_hub can raise errors of its dependencies.
        raise WeightsError(f"cannot push to {repository!r}: {explain(error, repository)}") from error
    return str(address)


def explain(error: Exception, repository: str, revision: str | None = None) -> str:
    """Return the reason for an error of huggingface_hub as one line.

    Args:
        error: the error.
        repository: the requested "owner/name".
        revision: the requested revision.

    Returns:
        The reason.
    """
    if find_spec("huggingface_hub") is None:
        return one_line(str(error))
    from huggingface_hub import errors

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return f"the repository is gated; request access at {SITE}/{repository}, and {LOGIN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the repository has no revision {revision!r}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the repository does not exist or is private; check the name, or {LOGIN}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        cause = error.__cause__
        return one_line(str(cause)) if cause else "the file is not in the cache"
    if isinstance(error, errors.EntryNotFoundError):
        return "the repository has no such file"
    if status in (401, 403):
        return f"the hub refused the request ({status}); {LOGIN} and a token with write access"
    return one_line(str(error)) or type(error).__name__
