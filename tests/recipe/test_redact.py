"""What may hold a secret is not written down; everything else is."""

from __future__ import annotations

import pytest

from asdm_cli.recipe.redact import is_redacted, redact, without_place

SECRET = "xK3y-Zz9.s3cr"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
WITH_SECRETS = {
    f"https://anna:{SECRET}@host.example/a.tar": "a.tar by https (sha256 ",
    f"https://anna:p@{SECRET}@host.example/a.tar": "a.tar by https (sha256 ",
    f"https://anna:p/{SECRET}@host.example/a.tar": "a.tar by https (sha256 ",
    f"https://anna:p?{SECRET}@host.example/a.tar": "a file by https (sha256 ",
    f"https://{SECRET}@host/a.tar": "a.tar by https (sha256 ",
    f"https://host/{SECRET}/a.tar": "a.tar by https (sha256 ",
    f"https://host/get/{SECRET}": "a file by https (sha256 ",
    f"s3://key:{SECRET}@bucket/{{000..009}}.tar": "{000..009}.tar by s3 (sha256 ",
    f"https://host/a.tar?X-Amz-Signature={SECRET}&x=1": "a.tar by https (sha256 ",
    f"simplecache::https://host/a.tar.gz#{SECRET}": "a.tar.gz by simplecache::https (sha256 ",
    f'pipe:curl -H "Authorization: Bearer {SECRET}" https://host/a.tar': "a command (sha256 ",
    f"pipe:curl -H 'X-Whatever: {JWT}' x": "a command (sha256 ",
    f"pipe:get sk-{SECRET}": "a command (sha256 ",
}
WITHOUT = (
    "runs/base/model",
    "a red apple? yes",
    "data/train-*.tar",
    "16 tokens, token counts: none",
    "a pipe: the whole of it",
    "up.*.1",
)


@pytest.mark.parametrize("text", WITH_SECRETS)
def test_addresses_and_commands_become_digests(text: str) -> None:
    told = redact(text)
    assert told.startswith(WITH_SECRETS[text])
    assert not any(word in told for word in (SECRET, JWT, "anna", "host"))
    assert redact(told) == told
    assert is_redacted(told)
    assert redact({"a": [text, 1], "b": f"see {text}"})["a"] == [told, 1]


def test_a_digest_is_of_the_place() -> None:
    """Who asks, and with what signature, changes from day to day."""
    same = {redact(f"https://{user}host/a.tar{query}") for user in ("", "me:x@") for query in ("", "?sig=1", "#2")}
    assert len(same) == 1
    assert len({redact(f"{way}://{host}/a.tar") for way in ("http", "s3") for host in ("a", "b")}) == 4
    assert redact("pipe:cat a") != redact("pipe:cat b")


@pytest.mark.parametrize("text", WITHOUT)
def test_other_texts_stay(text: str) -> None:
    assert redact(text) == text
    assert not is_redacted(text)


@pytest.mark.parametrize(
    ("source", "told"),
    [("/home/anna/private/sd", "sd"), ("runs/base", "runs/base"), ("~/models/x", "x"), ("pocket", "pocket"), ("/", "")],
)
def test_places(source: str, told: str) -> None:
    assert without_place(source) == told
