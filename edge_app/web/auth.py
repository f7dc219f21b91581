"""
Who may use the page: pure rules, with the clock passed in.

Without a token only programs of this machine reach the server, but a browser on it may be sent here
by any page on the internet (DNS rebinding, cross-site requests): the name that it asks for must be
a loopback one, and what acts must come from the page itself. With a token, whoever has not shown it
gets nothing but the form that asks for it.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from edge_app.errors import ConfigError

# A token is typed or pasted once into each browser; 16 random letters are 90 bits.
LEAST_TOKEN, MOST_TOKEN = 16, 1024
# A tablet on the wall is asked again after so many seconds: 30 days.
SESSION_S = 30 * 24 * 3600.0
# Cost of turning the token into the key of the cookies (RFC 7914): 50 ms on a workstation, 0.3 s
# on a Pi, 16 MB, once at the start. A stolen cookie cannot be used to guess a weak token quickly.
SCRYPT_N, SCRYPT_R, SCRYPT_P = 2**14, 8, 1
# Sessions that are remembered as logged out, each until it would have expired: some 200 KB.
MOST_ENDED = 1000
# Wrong tokens within a minute: from one address, and from all of them.
MOST_WRONG_EACH, MOST_WRONG, WRONG_WITHIN_S = 5, 50, 60.0
# What the page's own requests carry; a form on another page cannot send it.
ACTION_HEADER = "X-Edge-App"


def read_token(path: Path | str) -> str:
    """
    The token in a file: one line.

    Raises
    ------
    ConfigError
        If it cannot be read, or is not one line of at least `LEAST_TOKEN` printable characters.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_TOKEN + 2)
    except OSError as error:
        raise ConfigError(f"[web] token_file {path}: cannot be read: {error.strerror}") from None
    try:
        token = data.decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if not LEAST_TOKEN <= len(token) <= MOST_TOKEN or not token.isprintable() or " " in token:
        raise ConfigError(
            f"[web] token_file {path}: wanted one line of {LEAST_TOKEN} to {MOST_TOKEN} letters, "
            "digits and signs, such as openssl rand -hex 16 writes"
        )
    return token


def is_loopback(address: str) -> bool:
    """Whether an address to listen on can only be reached from this machine."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def names_loopback(host: str | None) -> bool:
    """Whether a ``Host`` header names this machine by a name that no name server decides on."""
    if not host:
        return False
    if host.startswith("["):
        name = host[1:].partition("]")[0]
    else:
        name = host.partition(":")[0]
    return is_loopback(name.lower())


def same_origin(headers: Mapping[str, str]) -> bool:
    """
    Whether a browser says that a request comes from the page itself, or no browser sent it.

    Parameters
    ----------
    headers : mapping
        Of the request; looked up without regard to case by the caller's mapping.
    """
    if headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("Origin")
    if origin is None:
        return True
    try:
        # "null", what a sandboxed page sends, has no netloc.
        netloc = urlsplit(origin).netloc
    except ValueError:
        return False
    return bool(netloc) and netloc.lower() == headers.get("Host", "").lower()


class Sessions:
    """
    Signed cookies of browsers that have shown the token.

    Nothing is stored on the disk: the cookies outlive a restart, and a new token ends them all.
    Which were logged out is known until the next restart; the browser has given them up by then.

    Parameters
    ----------
    token : str
    name : str
        The station's; a cookie of one station is none at another with the same token.
    """

    def __init__(self, token: str, name: str) -> None:
        self._token = token.encode()
        self._key = hashlib.scrypt(
            self._token, salt=f"edge-app {name}".encode(), n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P
        )
        # A browser sends the cookies of one host to all its ports: two stations need two names.
        self.cookie = f"edge_app_{name}"
        self._ended: dict[str, int] = {}  # when each would have expired
        self._ended_until_s = 0  # whatever expires by then is ended too

    def knows(self, token: str) -> bool:
        """Whether this is the token; takes the same time whatever is wrong with it."""
        return hmac.compare_digest(self._token, token.encode("utf-8", "surrogateescape"))

    def issue(self, now_s: float) -> str:
        """A cookie's value, valid for `SESSION_S` from `now_s`, seconds since 1970 UTC."""
        text = f"{int(now_s + SESSION_S)}.{secrets.token_hex(8)}"
        return f"{text}.{self._sign(text)}"

    def valid(self, value: str, now_s: float) -> bool:
        """Whether a cookie's value was issued here and has not expired."""
        text, _, signature = value.rpartition(".")
        if not hmac.compare_digest(
            self._sign(text).encode(), signature.encode("utf-8", "surrogateescape")
        ):
            return False
        # A signed text is one that was issued; it begins with a number.
        expires_s = int(text.partition(".")[0])
        # A board without a clock battery may have issued one while its clock was years ahead.
        if value in self._ended or not now_s < expires_s <= now_s + SESSION_S:
            return False
        # So may the time be by which the oldest ended: no session of today is among those.
        return expires_s > self._ended_until_s or self._ended_until_s > now_s + SESSION_S

    def end(self, value: str, now_s: float) -> None:
        """Log a session out: its cookie is valid no more, nor whatever still lasts by it."""
        if not self.valid(value, now_s):
            return
        self._ended = {ended: until_s for ended, until_s in self._ended.items() if until_s > now_s}
        self._ended[value] = int(value.partition(".")[0])
        if len(self._ended) > MOST_ENDED:
            last = max(self._ended, key=self._ended.__getitem__)
            if self._ended[last] > now_s + SESSION_S:
                # Issued while the clock was ahead: not valid now, whether it is remembered or not.
                del self._ended[last]
                return
            # Rather some who are still in than one who has left: the oldest sessions end together.
            first = min(self._ended, key=self._ended.__getitem__)
            self._ended_until_s = self._ended.pop(first)

    def _sign(self, text: str) -> str:
        data = text.encode("utf-8", "surrogateescape")
        return hmac.new(self._key, data, hashlib.sha256).hexdigest()


class Attempts:
    """
    How often a wrong token was given lately.

    It limits the wrong ones alone: behind a proxy all come from one address, and whoever guesses
    must not keep out who knows. That guessing leads nowhere is the length of the token's doing.
    Remembers as many as are allowed in all, so that it cannot grow.

    Parameters
    ----------
    each, most : int
        Allowed from one address, and from all.
    within_s : float
    """

    def __init__(
        self,
        each: int = MOST_WRONG_EACH,
        most: int = MOST_WRONG,
        within_s: float = WRONG_WITHIN_S,
    ) -> None:
        self._each, self._within_s = each, within_s
        self._wrong: deque[tuple[float, str]] = deque(maxlen=most)

    def wait_s(self, address: str, now_s: float) -> float:
        """For how long wrong tokens of an address are no longer answered, seconds; 0: they are."""
        wrong = self._wrong
        while wrong and now_s - wrong[0][0] >= self._within_s:
            wrong.popleft()
        mine = [at_s for at_s, who in wrong if who == address]
        if len(mine) >= self._each:
            return mine[-self._each] + self._within_s - now_s
        if len(wrong) == wrong.maxlen:
            return wrong[0][0] + self._within_s - now_s
        return 0.0

    def wrong(self, address: str, now_s: float) -> None:
        """Remember a wrong one."""
        self._wrong.append((now_s, address))
