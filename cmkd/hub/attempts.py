"""Requests to the Hub that are repeated where the trouble may pass, and what is said where it does not."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, OfflineModeIsEnabled  # type: ignore
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

ATTEMPTS = 3
FIRST_PAUSE = 1.0
"""Seconds to wait after the first attempt; doubled after each."""
TIMEOUT = 100.0
"""Seconds without a byte from the Hub after which a request has failed; huggingface_hub would wait for ever."""
_ANY_TOKEN = r"\bhf_\w+"


class PushError(OSError):
    """A push that did not succeed; the message says what to do."""


def repeated(send: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    """Calls `send` again where the trouble may pass; each of its steps does nothing if it was done before.

    huggingface_hub by itself repeats the upload of large files five times, but neither the commit nor what makes the
    repository. If a commit did arrive and only the answer was lost, the next attempt finds nothing left to commit.
    """
    pause = FIRST_PAUSE
    for _ in range(ATTEMPTS - 1):
        try:
            with _time_limit():
                return send()
        except (HTTPError, RuntimeError) as error:
            if not _may_pass(_http_cause(error)):
                raise
        time.sleep(pause)
        pause *= 2
    with _time_limit():
        return send()


@contextmanager
def _time_limit() -> Iterator[None]:
    client = get_session()
    before, client.timeout = client.timeout, TIMEOUT
    try:
        yield
    finally:
        client.timeout = before


def _http_cause(error: BaseException) -> BaseException:
    """The error of the connection that huggingface_hub has wrapped into another one, else the error itself."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HTTPError):
        cause = cause.__cause__
    return cause or error


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later: no answer, or one of the server's own troubles."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, HTTPError)


@contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Turns what goes wrong on the way to the Hub into a `PushError` that says what to do."""
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
