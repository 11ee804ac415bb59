"""Whether S3 answers, asked before a job starts: seconds and one line, not minutes of retries."""

import os
import re
from collections.abc import Sequence

from deltalake import DeltaTable

from models.data.schema import UserError
from ray_jobs.storage import filesystem, one_line

# of deltalake's client; by default it tries for three minutes
_FAST = {"max_retries": "1", "retry_timeout": "5s", "connect_timeout": "3s", "timeout": "10s"}
_HINTS = {
    "URL scheme is not allowed": "AWS_ENDPOINT_URL is http://: set AWS_ALLOW_HTTP=true, or https",
    "NoSuchBucket": "there is no such bucket",
}


def check(lake: str, sources: Sequence[str]) -> None:
    """Raise UserError unless those that are s3:// URLs can be listed.

    Asked through deltalake's client, which gives up when it is told to, and then PyArrow's: each
    looks for the endpoint and the credentials by itself.
    """
    for url in dict.fromkeys([lake, *sources]):
        if url.startswith("s3://"):
            base = _before_glob(url)
            if "?" not in base:  # options in the URL are PyArrow's
                _ask_deltalake(base)
            _ask_pyarrow(base)


def _before_glob(url: str) -> str:
    start = re.split(r"[*\[]", url, maxsplit=1)[0]
    return url if start == url else start.rpartition("/")[0]


def _ask_deltalake(url: str) -> None:
    try:
        DeltaTable.is_deltatable(url, _FAST)
    except OSError as error:
        raise UserError(f"{url}: {_reason(str(error))}") from error


def _ask_pyarrow(url: str) -> None:
    try:
        system, path = filesystem(url)
        system.get_file_info(path)
    except OSError as error:
        raise UserError(f"{url}: {one_line(error)}") from error


def _reason(text: str) -> str:
    """The cause in deltalake's tree of causes, and S3's own words where it answered."""
    for sign, hint in _HINTS.items():
        if sign in text:
            return hint
    answer = re.search(r"<Code>(.*?)</Code>(?:<Message>(.*?)</Message>)?", text)
    if answer:
        return ": ".join(part for part in answer.groups() if part)
    lines = [re.sub(r"\x1b\[\d*m|↳", "", line).strip() for line in text.splitlines()]
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    asked = f" (AWS_ENDPOINT_URL is {endpoint})" if endpoint else ""
    return f"{next(line for line in reversed(lines) if line)}{asked}"
