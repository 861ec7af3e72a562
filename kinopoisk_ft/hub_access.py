"""Access to the Hugging Face hub whose failures say what to do."""

from __future__ import annotations

import logging
import pickle
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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

_TIMEOUT = 10.0  # seconds; what huggingface_hub grants a first answer
_ASK_AGAIN = 60.0  # seconds after which a hub that did not answer is asked once more
_HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "requests", "urllib3")  # differ by its version


class _Reach:
    """Whether the hub answers, asked once before the first request that is made.

    By itself huggingface_hub asks a dead host for some 23 seconds, and transformers twice that for
    each file. Here one question decides: no answer turns on offline mode for the block, so that
    files in the cache load and others fail at once.
    """

    def __init__(self) -> None:
        self.answered = False
        self.failure: str | None = None
        self.failed_at = -_ASK_AGAIN
        self.asking = False

    def before_request(self, request: Any) -> None:
        """Serve as a hook of the HTTP client."""
        if self.answered or self.asking:
            return
        if time.monotonic() - self.failed_at >= _ASK_AGAIN:
            self.failure = self._ask(request)
        if self.failure is None:
            self.answered = True
            return
        constants.HF_HUB_OFFLINE = True
        raise OfflineModeIsEnabled(self.failure)

    def _ask(self, request: Any) -> str | None:
        self.asking = True
        try:
            get_session().head(request.url, timeout=_TIMEOUT, follow_redirects=False)
        except Exception as error:
            if not _is_http(error):
                raise
            self.failed_at = time.monotonic()
            failure = f"{constants.ENDPOINT}: {_in_short(error)}"
            log.warning("the hub cannot be reached, only its cache is used: %s", failure)
            return failure
        finally:
            self.asking = False
        return None


_reach = _Reach()


@contextmanager
def hub_errors(what: str, fix: str) -> Iterator[None]:
    """Turn failures to get `what` from the hub, its cache or a folder into a UserError with `fix`.

    Unrelated errors pass as they are: a full disk, a bug. Nothing is asked of the network unless
    the block asks, and a hub that does not answer is given up within `_TIMEOUT`.
    """
    offline = constants.HF_HUB_OFFLINE
    hooks = get_session().event_hooks["request"]
    hooks.append(_reach.before_request)
    try:
        yield
    except Exception as error:
        explained = _explain(error, what, fix, None if offline else _reach.failure)
        if explained is None:
            raise
        raise explained from error
    finally:
        hooks.remove(_reach.before_request)
        constants.HF_HUB_OFFLINE = offline


def _explain(error: Exception, what: str, fix: str, unreached: str | None) -> UserError | None:
    """Return what a user can do about an error, None where it is not of the hub."""
    if isinstance(error, pickle.UnpicklingError):
        pickled = f"{what} has its weights in a pickle that is damaged or holds more than numbers"
        return UserError(pickled, fix=f"get its weights as model.safetensors, or {fix}")
    refused = _is_refusal(error)
    if not (refused or _is_http(error) or type(error).__module__ == "huggingface_hub.errors"):
        return None
    links = list(_chain(error))
    hub = constants.ENDPOINT

    def among(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in links)

    if among(GatedRepoError):
        fix = f"ask for access on its page and log in (hf auth login), or {fix}"
        return UserError(f"{what} is gated", where=hub, fix=fix)
    if among(RepositoryNotFoundError, HFValidationError):
        missing = f"{what} is neither a folder here nor a public name on the hub"
        return UserError(missing, where=hub, fix=f"check the name, or {fix}")
    if among(RevisionNotFoundError):
        return UserError(f"{what} has no such revision", where=hub, fix="check the revision")
    if among(RemoteEntryNotFoundError):
        return UserError(f"{what} has no such file: {_in_short(error)}", where=hub, fix=fix)
    if unreached and among(OfflineModeIsEnabled, LocalEntryNotFoundError):
        absent = f"{what} is not in the cache, and the hub cannot be reached"
        return UserError(absent, where=unreached, fix=f"check the connection, or {fix}")
    if constants.HF_HUB_OFFLINE and among(OfflineModeIsEnabled, LocalEntryNotFoundError):
        absent = f"{what} is not in the cache, and offline mode is on"
        where = f"cache {constants.HF_HUB_CACHE}"
        return UserError(absent, where=where, fix=f"unset HF_HUB_OFFLINE, or {fix}")
    for link in links:
        if _is_http(link):
            failed = f"{what} did not arrive: {_in_short(link)}"
            return UserError(failed, where=hub, fix=f"try again later, or {fix}")
    return UserError(f"{what} cannot be loaded: {_in_short(error)}", fix=fix)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_refusal(error: Exception) -> bool:
    """Whether transformers could not make sense of files that it did find."""
    if type(error) is OSError and error.errno is None:
        return True
    frames = traceback.walk_tb(error.__traceback__)
    inside = any(f.f_globals.get("__name__", "").startswith("transformers.") for f, _ in frames)
    # The Rust libraries below it raise a bare Exception and their own SafetensorError.
    return inside and (isinstance(error, (ValueError, SafetensorError)) or type(error) is Exception)


def _is_http(error: BaseException) -> bool:
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, HfHubHTTPError) or module in _HTTP_LIBRARIES


def _in_short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
