"""What clients of HTTP endpoints have in common: the address, the key, and words for faults."""

import os
import re
from urllib.parse import urlsplit

from cherry_vllm.errors import UserError
from cherry_vllm.runtime.text import printable

RETRIED_STATUS = (408, 409, 429)  # and 500 upwards
NO_KEY = "none"  # the `openai` client requires a key
MAX_REASON_CHARS = 300
VARIABLE_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")


def check_url(url: str, group: str) -> str:
    """The URL without trailing slashes, so that it names the endpoint in one form.

    ``group`` is the group of settings that holds it, such as "judge".

    Raises:
        UserError: it is not such a URL, or contains a secret.
    """
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_secret = parts.username is not None or bool(parts.query)
        _ = parts.port
    except ValueError:
        is_usable, is_secret = False, False
    if is_secret:  # not repeated: it may hold a password
        raise UserError(
            f"{group}.base_url: contains a user name or a query; pass keys by {group}.api_key_env"
        )
    if not is_usable:
        raise UserError(f"{group}.base_url={url}: give a URL such as http://localhost:8000/v1")
    return url.rstrip("/")


def read_api_key(variable: str | None, group: str) -> str | None:
    """The key in an environment variable; None if no variable is named.

    Raises:
        UserError: the variable is not set, or holds characters that no HTTP header can have.
    """
    if variable is None:
        return None
    if not VARIABLE_NAME.fullmatch(variable):  # perhaps the key itself: not repeated
        raise UserError(
            f"{group}.api_key_env: give the name of an environment variable, in capitals, not the "
            "key"
        )
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"{variable}: the environment variable is not set; export the endpoint's key in it, "
            f"or set {group}.api_key_env=null for an endpoint without one"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{variable}: contains characters that no key has; export the key again")
    return key


def as_reason(text: str, api_key: str | None) -> str:
    """The text as one short printable line, without the key, which a server may repeat."""
    if api_key:
        text = text.replace(api_key, "[key]")
    return printable(" ".join(text.split()))[:MAX_REASON_CHARS]
