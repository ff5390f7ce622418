"""Requests to the Hub: which errors are worth another attempt, and how the others are explained."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, OfflineModeIsEnabled  # type: ignore
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

T = TypeVar("T")

ATTEMPTS = 3
FIRST_PAUSE = 1.0
"""Seconds to wait after the first attempt; the pause doubles after each further one."""
TIMEOUT = 100.0
"""Seconds without a byte from the Hub after which a request has failed; huggingface_hub would wait for ever."""
_ANY_TOKEN = r"\bhf_\w+"


class PushError(OSError):
    """A push that did not succeed; the message says what to do."""


def repeated(send: Callable[[], T]) -> T:
    """Calls `send`, and again if it fails in a way that may pass; a step that was done before must then do nothing.

    huggingface_hub itself repeats the upload of large files five times, but neither the commit nor the creation of the
    repository. If a commit did arrive and only the answer was lost, the next attempt finds nothing left to commit.
    """
    attempts = Retrying(
        retry=retry_if_exception(_may_pass),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(FIRST_PAUSE),
        reraise=True,
    )
    return attempts(_time_limit()(send))


@contextmanager
def _time_limit() -> Iterator[None]:
    client = get_session()
    before, client.timeout = client.timeout, TIMEOUT
    try:
        yield
    finally:
        client.timeout = before


def _http_cause(error: BaseException) -> BaseException:
    """The connection error that huggingface_hub has wrapped into another error, or else the error itself."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HTTPError):
        cause = cause.__cause__
    return cause or error


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later: there was no answer, or the server had a problem of its own."""
    cause = _http_cause(error) if isinstance(error, (HTTPError, RuntimeError)) else error
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code >= 500 or cause.response.status_code == 429
    return isinstance(cause, HTTPError)


@contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Turns an error on the way to the Hub into a `PushError` that says what to do."""
    try:
        yield
    except (OfflineModeIsEnabled, HTTPError, RuntimeError) as error:
        cause = _http_cause(error)
        if isinstance(cause, RuntimeError):
            raise
        raise PushError(
            f"{_explanation(cause, repo_id)} {repo_id} holds what it held before, or all of this push; the same "
            "command can be repeated."
        ) from error


def _explanation(error: BaseException, repo_id: str) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to push."
    if isinstance(error, GatedRepoError):
        return f"{repo_id} is gated, and this token has no access: ask for it on the page of the repository."
    if not isinstance(error, HfHubHTTPError):
        return f"the Hub does not answer ({type(error).__name__}), several attempts included."
    status = error.response.status_code
    said = f" It says: {re.sub(_ANY_TOKEN, '(token)', error.server_message)}." if error.server_message else ""
    if status == 401:
        return f"the Hub does not accept the token (401): run `hf auth login`, or set HF_TOKEN to a valid one.{said}"
    if status == 403:
        return (
            f"the token may not write to {repo_id} (403): take a token with the right to write, of a user who may "
            f"write there.{said}"
        )
    if status == 404:
        return f"the Hub does not know {repo_id}, or does not show it to this token (404): check name and token.{said}"
    if status >= 500 or status == 429:
        return f"the Hub cannot serve the request now ({status}), several attempts included.{said}"
    return f"the Hub refuses the request ({status}).{said}"
