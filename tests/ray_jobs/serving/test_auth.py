"""The token: where it is read from, what is refused, whom it admits."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.schema import UserError
from ray_jobs.serving.auth import LEAST_LENGTH, TOKEN_FILE, Token, read_token, token_file

VARIABLE = "RAYCREDIT_API_TOKEN"
GOOD = "c0rrect-horse.battery~staple+/=="


def token(value: str, monkeypatch: pytest.MonkeyPatch) -> Token:
    monkeypatch.setenv(VARIABLE, value)
    return read_token(VARIABLE, None)


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER   "])
def test_admits_the_token(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert token(GOOD, monkeypatch).admits(f"{scheme}{GOOD}")


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", GOOD, f"Basic {GOOD}", f"Bearer {GOOD}x", f"Bearer{GOOD}",
     f"Bearer {GOOD[:-1]}", f"Bearer {GOOD} {GOOD}", f"Bearer {GOOD.upper()}", "Bearer \udc80é"],
)  # fmt: skip
def test_admits_nothing_else(header: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not token(GOOD, monkeypatch).admits(header)


@given(st.text(st.characters(max_codepoint=255)))
def test_no_header_breaks_it(header: str) -> None:
    assert not Token(b"\0" * 32).admits(header)
    assert not Token(b"\0" * 32).admits(f"Bearer {header}")


def test_file_wins_and_its_line_end_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{GOOD}\n")
    monkeypatch.setenv(VARIABLE, "another-token-0123456789")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(TOKEN_FILE, "token")
    assert token_file() == str(file)
    assert read_token(VARIABLE, token_file()).admits(f"Bearer {GOOD}")


def test_without_a_file_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_FILE, raising=False)
    assert token_file() is None


@pytest.mark.parametrize("value", ["", "   ", "short", "a" * (LEAST_LENGTH - 1), f"{GOOD} {GOOD}"])
def test_refuses_a_missing_or_weak_token_without_repeating_it(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=VARIABLE) as refused:
        token(value, monkeypatch)
    assert "\n" not in str(refused.value)
    assert not value.strip() or value not in str(refused.value)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"])
def test_refuses_an_unreadable_file(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=TOKEN_FILE):
        read_token(VARIABLE, str(file))


def test_token_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    held = token(GOOD, monkeypatch)
    assert GOOD not in f"{held!r} {held} {vars(held)}"
