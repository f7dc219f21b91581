"""A webhook: each NG is posted to an address, as JSON."""

from __future__ import annotations

import base64
import http.client
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from edge_app import __version__
from edge_app.config import WebhookConfig
from edge_app.outbox import GivenUp, Item
from edge_app.records import Event
from edge_app.sinks.message import as_message

# "Request timeout" and "too many requests": the only refusals that the same request may outlive.
LATER = (408, 429)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would become a GET without the message, and look like success."""

    def redirect_request(self, *_: Any) -> None:
        return None


class WebhookSink:
    """
    Posts each NG event once it begins; any answer of 200 to 299 is success.

    A message that was received may come again where its answer was lost on the way: time and
    `boot_s` tell that it is the same.

    Parameters
    ----------
    settings : WebhookConfig
        `url`, which may hold ``user:password@``, and `timeout_s`.
    station : str
        Its name.
    """

    name = "webhook"

    def __init__(self, settings: WebhookConfig, station: str) -> None:
        self._station, self._timeout_s = station, settings.timeout_s
        parts = urlsplit(settings.url)
        user, at, place = parts.netloc.rpartition("@")
        self._url = urlunsplit(parts._replace(netloc=place, fragment=""))
        # The address may hold a secret: no sentence names more of it than this.
        self._place = f"{parts.scheme}://{place}"
        self._headers = {
            "Content-Type": "application/json; charset=utf-8",
            "User-Agent": f"edge-app/{__version__}",
        }
        if at:
            coded = base64.b64encode(unquote(user).encode()).decode()
            self._headers["Authorization"] = f"Basic {coded}"
        self._opener = urllib.request.build_opener(_Stay())

    def wants(self, item: Item) -> bool:
        """Each NG, and not again when its episode has ended."""
        if not isinstance(item, Event) or item.kind != "ng":
            return False
        return item.episode is None or item.ended_s is None

    def emit(self, items: Sequence[Item]) -> None:
        """
        Post the events.

        Raises
        ------
        GivenUp
            If the other side refuses one (3xx, and 4xx but 408 and 429).
        OSError
            If it cannot be reached or says it will take it later.
        """
        for item in items:
            self._post(as_message(item, self._station))

    def close(self) -> None:
        """Nothing is held open between two events."""

    def _post(self, body: bytes) -> None:
        request = urllib.request.Request(self._url, body, self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                status = answer.status
        except urllib.error.HTTPError as error:
            error.close()
            status = error.code
        except urllib.error.URLError as error:
            raise OSError(f"{self._place} cannot be reached: {error.reason}") from None
        except TimeoutError:
            raise OSError(f"{self._place} did not answer in {self._timeout_s:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise OSError(f"{self._place} broke off: {type(error).__name__}") from None
        if 200 <= status < 300:
            return
        if 300 <= status < 500 and status not in LATER:
            raise GivenUp(f"{self._place} refused an event with status {status}")
        raise OSError(f"{self._place} answered with status {status}")
