"""Load from the Hugging Face hub or its cache, and explain failures."""

from __future__ import annotations

import logging
import math
import pickle
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, get_session
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
from safetensors import SafetensorError

from kinopoisk_ft.errors import UserError

log = logging.getLogger(__name__)

# Seconds to wait for the hub's first answer, as huggingface_hub does by default.
_TIMEOUT = 10.0
# Seconds for which an answer, or the lack of one, counts.
_ASK_AGAIN = 60.0
# huggingface_hub has changed its HTTP library several times.
_HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "requests", "urllib3")

# By endpoint: when the hub was asked last, and why it did not answer ("" if it did).
_answers: dict[str, tuple[float, str]] = {}
# The reason why the block that is open uses the cache only; "" if the hub can be reached, or if
# the user chose offline mode.
_unreachable = ""


@contextmanager
def access_hub(kind: str, name: str, fix: str) -> Iterator[None]:
    """Load `name` from a folder, the hub or the hub's cache; turn failures into a UserError.

    A hub that does not answer costs one timeout: offline mode is then on inside the block, so that
    files in the cache load at once and others fail at once. Without this, huggingface_hub and
    transformers would wait for it at every file. Unrelated errors, such as a full disk, pass.

    Args:
        kind: what is loaded, for messages: model, tokenizer or data set.
        name: a folder or a name on the hub; the hub is not asked about a folder.
        fix: what the user can do instead.
    """
    global _unreachable
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


def _ask_hub() -> str:
    """Return why the hub does not answer, "" if it does; ask at most once a minute."""
    asked_at, failure = _answers.get(constants.ENDPOINT, (-math.inf, ""))
    if time.monotonic() - asked_at < _ASK_AGAIN:
        return failure
    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT)
        failure = ""
    except Exception as error:
        # The HTTP library, DNS, TLS and a proxy each have their own exceptions.
        failure = f"{constants.ENDPOINT}: {_shorten(error)}"
        log.warning("the hub cannot be reached, only its cache is used: %s", failure)
    _answers[constants.ENDPOINT] = time.monotonic(), failure
    return failure


def _explain(error: Exception, what: str, fix: str) -> UserError | None:
    """Return an error that says what to do; None if the error does not come from loading."""
    if isinstance(error, pickle.UnpicklingError):
        pickled = f"the weights of {what} are a pickle that is damaged or holds more than numbers"
        return UserError(pickled, fix=f"get the weights as model.safetensors, or {fix}")
    refused = _is_refusal(error)
    if not (refused or _is_http(error) or type(error).__module__ == "huggingface_hub.errors"):
        return None
    links = list(_chain(error))
    hub = constants.ENDPOINT

    def among(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in links)

    if among(GatedRepoError):
        fix = f"request access on its page and log in (hf auth login), or {fix}"
        return UserError(f"{what} is gated", where=hub, fix=fix)
    if among(RepositoryNotFoundError, HFValidationError):
        missing = f"{what} is neither a local folder nor a public repository on the hub"
        return UserError(missing, where=hub, fix=f"check the name, or {fix}")
    if among(RevisionNotFoundError):
        return UserError(f"{what} has no such revision", where=hub, fix="check the revision")
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
    """Yield an error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_refusal(error: Exception) -> bool:
    """Return whether transformers could not read files that it found."""
    if type(error) is OSError and error.errno is None:
        return True
    frames = traceback.walk_tb(error.__traceback__)
    inside = any(f.f_globals.get("__name__", "").startswith("transformers.") for f, _ in frames)
    # The Rust libraries that it calls raise a bare Exception or a SafetensorError.
    return inside and (isinstance(error, (ValueError, SafetensorError)) or type(error) is Exception)


def _is_http(error: BaseException) -> bool:
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, HfHubHTTPError) or module in _HTTP_LIBRARIES


def _shorten(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
