"""Download files from the Hugging Face hub, upload models to it, and explain errors.

While the hub cannot be reached, only files in the local cache are used.
"""

from __future__ import annotations

import logging
import math
import pickle
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_session,
    get_token,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from kinopoisk_ft.errors import UserError, is_out_of_memory

log = logging.getLogger(__name__)

# Timeout in seconds for the request that tests the hub; the default of huggingface_hub.
_TIMEOUT = 10.0
# Seconds for which the result of that request is reused.
_ASK_AGAIN = 60.0
_LOGIN = "log in with a token that may write (hf auth login), or set HF_TOKEN to such a token"
# Packages that may raise network errors: huggingface_hub has changed its HTTP library repeatedly.
_HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "requests", "urllib3")

# For each endpoint: the time of the last test request, and why it failed ("" if it succeeded).
_answers: dict[str, tuple[float, str]] = {}
# Why code inside the current `access_hub` block uses only the cache; "" if the hub can be reached,
# or if the user chose offline mode.
_unreachable = ""


@contextmanager
def access_hub(kind: str, name: str, fix: str) -> Iterator[None]:
    """Raise a UserError if the code inside the `with` block cannot load `name`.

    If the hub does not answer a test request, the block runs in offline mode. Cached files then
    load, and other files fail immediately instead of after a timeout. Unrelated errors, such as a
    full disk or a lack of memory, are raised unchanged.

    Args:
        kind: what is loaded, for messages: model, tokenizer or data set.
        name: a repository on the hub, or a local folder. For a folder, the hub is not tested.
        fix: what the user can do instead, for messages.
    """
    global _unreachable
    # Blocks may be nested, so the state of the outer block is restored at the end.
    before = _unreachable, constants.HF_HUB_OFFLINE
    if not constants.HF_HUB_OFFLINE and not Path(name).is_dir():
        _unreachable = _ask_hub()
        constants.HF_HUB_OFFLINE = bool(_unreachable)
    try:
        yield
    except Exception as error:
        explained = _explain(error, f"{kind} '{name}'", fix)
        if explained is None:
            raise
        raise explained from error
    finally:
        _unreachable, constants.HF_HUB_OFFLINE = before


def check_repository(name: str) -> None:
    """Raise UserError if a name is not a valid repository name of the form owner/name."""
    try:
        validate_repo_id(name)
        # Versions before 2 accept letters of all alphabets, but the hub does not.
        valid = "/" in name and name.isascii()
    except HFValidationError:
        valid = False
    if not valid:
        raise UserError(
            f"'{name}' is not the name of a repository",
            where="the command line",
            fix="write owner/name, with letters, digits, '-', '_' and '.' in both",
        )


def upload(
    name: str,
    files: Mapping[str, Path | bytes],
    *,
    public: bool = False,
    update: bool = False,
    replaced: Iterable[str] = (),
) -> str:
    """Upload files to a model repository in one commit, and return the URL of the repository.

    Args:
        files: {name in the repository: local file or contents}.
        public: whether everyone may see the new repository.
        update: whether to change an existing repository. Its visibility stays the same.
        replaced: with `update`, patterns of the paths in the repository that are deleted if they
            are not in `files`. `*` does not match a slash.

    Raises:
        UserError: there is no valid token, the repository exists (or, with `update`, does not
            exist), it belongs to someone else, the hub refuses the metadata of README.md, or it
            cannot be reached.
    """
    if get_token() is None:
        raise UserError("you are not logged in to the hub", where=constants.ENDPOINT, fix=_LOGIN)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path, part if isinstance(part, bytes) else str(part))
        for path, part in files.items()
    ]
    api, created = HfApi(), False
    try:
        if not update:
            api.create_repo(name, private=not public)
            created = True
        else:
            # A file of an earlier model, such as the config of an adapter, would change this model.
            old = set(api.list_repo_files(name)) - set(files)
            operations += [CommitOperationDelete(x) for x in sorted(old) if _matches(x, replaced)]
        api.create_commit(name, operations, commit_message="Upload the model")
    except Exception as error:
        # huggingface_hub raises ValueError if the hub refuses the metadata of README.md.
        if not (_is_http(error) or isinstance(error, (OfflineModeIsEnabled, ValueError))):
            raise
        what, fix = _explain_upload(error, name, created)
        if created:
            fix += "; the repository exists now, so also pass --update"
        raise UserError(what, where=constants.ENDPOINT, fix=fix) from error
    return f"{constants.ENDPOINT}/{name}"


def _matches(path: str, patterns: Iterable[str]) -> bool:
    # In `fnmatch`, `*` also matches slashes, so compare their number.
    return any(x.count("/") == path.count("/") and fnmatchcase(path, x) for x in patterns)


def _explain_upload(error: Exception, name: str, created: bool) -> tuple[str, str]:
    """Return why the upload to `name` failed, and how the user can correct the problem."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OfflineModeIsEnabled):
        return "offline mode is on, so nothing can be uploaded", "unset HF_HUB_OFFLINE"
    # The hub also answers 401 for a repository that is private or does not exist.
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return "the hub does not accept your token", _LOGIN
    if isinstance(error, RepositoryNotFoundError):
        missing = f"there is no repository '{name}', or your token may not see it"
        return missing, "leave out --update to create it"
    if status == 403:
        fix = f"use your own name or your organization as owner, or {_LOGIN}"
        return f"your token may not write to '{name}'", fix
    if status == 409 and not created:
        fix = "choose another name, or pass --update to replace its model"
        return f"the repository '{name}' exists already", fix
    failed = f"the upload to '{name}' failed: {_shorten(error)}"
    if "README.md" in failed:
        return failed, "correct README.md in the model folder"
    return failed, "check the connection and try again"


def _ask_hub() -> str:
    asked_at, failure = _answers.get(constants.ENDPOINT, (-math.inf, ""))
    if time.monotonic() - asked_at < _ASK_AGAIN:
        return failure
    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT)
        failure = ""
    except Exception as error:
        # The HTTP library, DNS, TLS and proxies each raise their own exceptions.
        failure = f"{constants.ENDPOINT}: {_shorten(error)}"
        log.warning("the hub cannot be reached, so only cached files are used: %s", failure)
    _answers[constants.ENDPOINT] = time.monotonic(), failure
    return failure


def _explain(error: Exception, what: str, fix: str) -> UserError | None:
    # `torch.load` raises this error for a damaged file, and for code in a pickle file.
    if isinstance(error, pickle.UnpicklingError):
        pickled = f"the weights of {what} are a pickle file that is damaged or unsafe to load"
        space = "https://huggingface.co/spaces/safetensors/convert"
        safe = f"download it again, or convert it to model.safetensors with {space}, or {fix}"
        return UserError(pickled, fix=safe)
    refused = _is_refusal(error)
    if not (refused or _is_http(error) or type(error).__module__ == "huggingface_hub.errors"):
        return None
    links = list(_chain(error))
    hub = constants.ENDPOINT

    def among(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in links)

    # GatedRepoError is a subclass of RepositoryNotFoundError, so it must be checked first.
    if among(GatedRepoError):
        fix = f"request access on its page on the hub and log in (hf auth login), or {fix}"
        return UserError(f"{what} is gated", where=hub, fix=fix)
    if among(RepositoryNotFoundError, HFValidationError):
        missing = f"{what} is neither a local folder nor a public repository on the hub"
        return UserError(missing, where=hub, fix=f"check the name, or {fix}")
    if among(RevisionNotFoundError):
        wrong = f"{what} has no such revision: {_shorten(error)}"
        branch = "set model.revision or data.revision to a branch, tag or commit that exists"
        return UserError(wrong, where=hub, fix=branch)
    if among(RemoteEntryNotFoundError):
        return UserError(f"{what} has no such file: {_shorten(error)}", where=hub, fix=fix)
    if _unreachable and among(OfflineModeIsEnabled, LocalEntryNotFoundError):
        absent = f"{what} is not in the cache, and the hub cannot be reached"
        return UserError(absent, where=_unreachable, fix=f"check the connection, or {fix}")
    if constants.HF_HUB_OFFLINE and among(OfflineModeIsEnabled, LocalEntryNotFoundError):
        absent = f"{what} is not in the cache, and offline mode is on"
        where = f"cache {constants.HF_HUB_CACHE}"
        return UserError(absent, where=where, fix=f"unset HF_HUB_OFFLINE, or {fix}")
    for link in links:
        if _is_http(link):
            failed = f"{what} could not be downloaded: {_shorten(link)}"
            return UserError(failed, where=hub, fix=f"try again later, or {fix}")
    return UserError(f"{what} cannot be loaded: {_shorten(error)}", fix=fix)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    # Libraries often raise their own error while they handle an error of the hub.
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_refusal(error: Exception) -> bool:
    """Return whether transformers raised `error` because files are missing or unusable.

    If the contents of a file are unexpected, transformers may raise any exception, for example an
    AttributeError for a list instead of a string.
    """
    # If files are missing, transformers raises a bare OSError without errno.
    if isinstance(error, (OSError, UserError)):
        return type(error) is OSError and error.errno is None
    if is_out_of_memory(error):
        return False
    frames = traceback.walk_tb(error.__traceback__)
    return any(f.f_globals.get("__name__", "").startswith("transformers.") for f, _ in frames)


def _is_http(error: BaseException) -> bool:
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, HfHubHTTPError) or module in _HTTP_LIBRARIES


def _shorten(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
