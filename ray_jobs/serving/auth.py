"""Who may ask: one bearer token, from the environment or a file, compared in constant time.

Ray's own token does not cover the endpoint, so this is its only lock. The token itself is never
kept, logged, or passed to Ray: every process reads it for itself and keeps its SHA-256 only.
"""

import hashlib
import hmac
import os
import re
from dataclasses import dataclass
from pathlib import Path

from models.data.schema import UserError

TOKEN_FILE = "RAYCREDIT_API_TOKEN_FILE"  # the environment variable that names a file
LEAST_LENGTH = 16  # a shorter token can be guessed
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, section 2.1
_SCHEME = "bearer "


@dataclass(frozen=True, repr=False)
class Token:
    """The SHA-256 of the token that callers must send."""

    digest: bytes

    def admits(self, authorization: str | None) -> bool:
        """Whether an `Authorization` header carries the token.

        Digests are compared, so the time taken tells nothing of the token, its length included.
        """
        header = authorization or ""
        given = header[len(_SCHEME) :].strip()
        right = hmac.compare_digest(_digest(given), self.digest)
        return right and header[: len(_SCHEME)].lower() == _SCHEME


def token_file() -> str | None:
    """The absolute path of the file that holds the token, where one is named."""
    named = os.environ.get(TOKEN_FILE)
    return os.path.abspath(named) if named else None


def read_token(variable: str, file: str | None) -> Token:
    """What callers must send. Raises UserError as `token_of` does."""
    return Token(_digest(token_of(variable, file)))


def token_of(variable: str, file: str | None) -> str:
    """The token in a file, or without one in an environment variable.

    Raises UserError where there is none, or one that is too short or cannot stand in a header.
    """
    if file is not None:
        where = f"{TOKEN_FILE} {file}"
        try:
            value = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{where}: no readable token for the endpoint") from error
    else:
        where = variable
        value = os.environ.get(variable, "").strip()
    if not value:
        raise UserError(
            f"{where}: no token for the endpoint; set {variable}, or let {TOKEN_FILE} name a file "
            "that holds it"
        )
    if len(value) < LEAST_LENGTH or not _TOKEN.fullmatch(value):
        raise UserError(
            f"{where}: the endpoint's token must have at least {LEAST_LENGTH} characters, letters, "
            "digits or any of . _ ~ + / - ="
        )
    return value


def _digest(value: str) -> bytes:
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()
