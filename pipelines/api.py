"""The REST API of Kubeflow Pipelines: one request, its answer as JSON, and every other answer as one sentence.

The SDK's clients take a login page for an answer, wait without end, and print server answers whole; none of that can
be set. `requests` reads proxies (`HTTPS_PROXY`, `NO_PROXY`) by itself.
"""

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from mobileclip.errors import ConfigError, MobileClipError

logger = logging.getLogger(__name__)

Json = dict[str, Any]

CA = "KF_PIPELINES_CA"
"""File with the certificate authorities to trust; without it `REQUESTS_CA_BUNDLE`, else those of the web."""
TOKEN, TOKEN_FILE, COOKIE = "KF_PIPELINES_TOKEN", "KF_PIPELINES_TOKEN_FILE", "KF_PIPELINES_COOKIE"
"""A bearer token, a file that holds one (read for every request, so that it may be renewed), a browser's cookie."""

_PREFIX = "/apis/v2beta1"
_TIMEOUT = (10.0, 60.0)  # to connect, and between two bytes of an answer [s]
_PASSING = {429, 500, 502, 503, 504}
_LONGEST_PAUSE = 15.0


class RefusedError(MobileClipError):
    """The server refuses a request.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


class AwayError(MobileClipError):
    """The server does not answer, or only that it cannot right now (exit code 6)."""

    exit_code = 6


class LoginError(ConfigError):
    """The server wants a login, or another one."""


@dataclass(frozen=True)
class Api:
    """A connection.

    Attributes:
        host: Address, such as `http://localhost:8888`; the UI has the same one.
        namespace: The user's; empty where there is one for all.
        session: Connections that are kept open.
        patience: How long a question is asked again while the server is away [s].
    """

    host: str
    namespace: str
    session: requests.Session
    patience: float = 30.0


def connect(host: str, namespace: str = "") -> Api:
    """Connect, and check that what answers is the API.

    Raises:
        ConfigError: Nothing answers, or something else, or a login is wanted.
    """
    if not host.startswith(("http://", "https://")):
        raise ConfigError(f"host: got '{host}', want http://... or https://....")
    session = requests.Session()
    for name in ("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", CA):
        if (file := os.environ.get(name)) and not Path(file).exists():
            raise ConfigError(f"{name}: got '{file}', there is no such file, want certificates in PEM form.")
    api = Api(host.rstrip("/"), namespace, session, patience=0.0)
    try:
        ask(api, "GET", "/healthz")
    except RefusedError as error:
        raise ConfigError(f"host: no Kubeflow Pipelines API at '{host}' ({error})") from None
    except AwayError as error:
        raise ConfigError(f"host: no Kubeflow Pipelines API answers at '{host}' ({error})") from None
    return Api(api.host, namespace, api.session)


def ask(
    api: Api,
    method: str,
    path: str,
    *,
    query: Mapping[str, Any] | None = None,
    body: Json | None = None,
    file: Path | None = None,
) -> Json:
    """Send a request; a question (GET) is asked again while the server is away, anything else is sent once.

    Args:
        api: The connection.
        method: `GET`, `POST`, `DELETE`.
        path: Below `/apis/v2beta1`.
        query: Query parameters; empty ones are left out.
        body: JSON to send.
        file: Package to upload.

    Raises:
        LoginError: A login is wanted.
        RefusedError: The server refuses.
        AwayError: It is away for longer than `api.patience`.
    """
    deadline, pause = time.monotonic() + (api.patience if method == "GET" else 0.0), 0.5
    while True:
        try:
            return _send(api, method, path, query, body, file)
        except AwayError as error:
            if time.monotonic() + pause > deadline:
                raise
            logger.warning("%s asking again in %.1f s", error, pause)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def pages(api: Api, path: str, key: str, **query: Any) -> list[Json]:
    """All rows of a list that comes in pages."""
    rows: list[Json] = []
    token = ""
    while True:
        page = ask(api, "GET", path, query={**query, "page_token": token, "page_size": 100})
        rows += page.get(key) or []
        token = page.get("next_page_token") or ""
        if not token:
            return rows


def _send(
    api: Api, method: str, path: str, query: Mapping[str, Any] | None, body: Json | None, file: Path | None
) -> Json:
    given = {key: value for key, value in (query or {}).items() if value not in {"", None}}
    options: dict[str, Any] = {"params": given, "headers": _credentials(), "timeout": _TIMEOUT}
    if os.environ.get(CA):
        options["verify"] = os.environ[CA]  # a session's own loses against REQUESTS_CA_BUNDLE
    try:
        if file is not None:
            with file.open("rb") as data:
                answer = api.session.request(method, _url(api, path), files={"uploadfile": data}, **options)
        else:
            answer = api.session.request(method, _url(api, path), json=body, **options)
    except requests.exceptions.SSLError:
        raise ConfigError(
            f"host: the certificate of '{api.host}' is not trusted; {CA} names the file of the authority."
        ) from None
    except requests.RequestException as error:
        raise AwayError(f"'{api.host}' does not answer ({type(error).__name__});") from None
    return _read(api, answer)


def _read(api: Api, answer: requests.Response) -> Json:
    """The JSON of an answer.

    A login in front of the API answers 401 or 403, or leads to a page of its own, mostly with status 200.
    """
    if answer.status_code in {401, 403}:
        raise LoginError(
            f"host: '{api.host}' answers {answer.status_code} ({_said(answer)}): no login, or one that has expired or "
            f"lacks rights; set {TOKEN}, {TOKEN_FILE} or {COOKIE}."
        )
    if answer.status_code in _PASSING and not _is_verdict(answer):
        raise AwayError(f"'{api.host}' answers {answer.status_code} ({_said(answer)});")
    if not answer.ok:
        raise RefusedError(f"the server answers {answer.status_code}: {_said(answer)}.", answer.status_code)
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise LoginError(
            f"host: '{answer.url.split('?')[0]}' answers with a page and not as the API of Kubeflow Pipelines does, "
            f"such as for a login; set {TOKEN}, {TOKEN_FILE} or {COOKIE}, or another address."
        )
    return found


def _is_verdict(answer: requests.Response) -> bool:
    """Whether a 500 is the API's own word on this request, which another try would only repeat."""
    return answer.status_code == 500 and bool(_fields(answer))


def _said(answer: requests.Response) -> str:
    """What an answer says, on one line: the message without the server's stack below it."""
    fields = _fields(answer)
    text = str(fields.get("error_message") or fields.get("message") or fields.get("error") or "")
    if not fields and "<" not in answer.text[:200]:
        text = answer.text
    first = " ".join(text.strip().splitlines()[0].split()) if text.strip() else (answer.reason or "no reason given")
    return first[:300].rstrip(". ")


def _fields(answer: requests.Response) -> Json:
    try:
        found = json.loads(answer.text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _credentials() -> dict[str, str]:
    token, cookie = os.environ.get(TOKEN, ""), os.environ.get(COOKIE, "")
    if name := os.environ.get(TOKEN_FILE):
        try:
            token = Path(name).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{TOKEN_FILE}: cannot read '{name}' ({error.strerror}).") from None
    headers = {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}
    return {**headers, **({"Cookie": cookie.strip()} if cookie.strip() else {})}


def _url(api: Api, path: str) -> str:
    return f"{api.host}{_PREFIX}{path}"
