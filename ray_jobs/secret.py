"""The secret behind user keys: from a file or the environment, never from the configuration."""

import os
import secrets
from pathlib import Path

from models.data.schema import UserError
from ray_jobs.config import Config

SECRET_ENV = "RAYCREDIT_SECRET"
LEAST_BYTES = 16
OF_SIMULATED_USERS = "simulated users "  # known to all


def read_secret(config: Config) -> bytes:
    """The secret. Raises UserError when there is none, a short one, or one that all know."""
    where = config.secret_file or f"environment variable {SECRET_ENV}"
    if config.secret_file is not None:
        try:
            secret = Path(config.secret_file).read_bytes().strip()
        except OSError as error:
            raise UserError(f"secret_file {config.secret_file}: cannot be read") from error
    else:
        secret = os.environ.get(SECRET_ENV, "").encode()
    if len(secret) < LEAST_BYTES or not _is_text(secret):
        raise UserError(f"{where}: a secret of at least {LEAST_BYTES} bytes of text was expected")
    if config.simulate is None and secret.startswith(OF_SIMULATED_USERS.encode()):
        raise UserError(f"{where}: known to all, for simulated users; expected one of your own")
    return secret


def _is_text(secret: bytes) -> bool:
    try:
        return bool(secret.decode())
    except UnicodeDecodeError:
        return False


def make_secret(path: str, secret: str | None = None) -> None:
    """Make a secret file that only its owner can read, unless it is there; None: a random one."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(handle, "w", encoding="ascii") as stream:
        stream.write(secret or secrets.token_hex(32))
