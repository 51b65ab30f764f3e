"""Secrets and places of this machine are taken out of texts, and nothing else is."""

from __future__ import annotations

import pytest

from asdm_cli.recipe.public import redacted, without_place

SECRET = "xK3y-Zz9.s3cr"
WITH_SECRETS = {
    f"https://anna:{SECRET}@host.example/a.tar": "https://***@host.example/a.tar",
    f"s3://key:{SECRET}@bucket/{{000..009}}.tar": "s3://***@bucket/{000..009}.tar",
    f"https://host/a.tar?X-Amz-Signature={SECRET}&x=1": "https://host/a.tar?***",
    f"https://u:{SECRET}@host/a.tar?token={SECRET}": "https://***@host/a.tar?***",
    f"https://{SECRET}@host/a.tar": "https://***@host/a.tar",
    f'pipe:curl -H "Authorization: Bearer {SECRET}" https://host/a.tar': (
        'pipe:curl -H "Authorization: Bearer ***" https://host/a.tar'
    ),
    f"pipe:curl -H 'Authorization: Basic {SECRET}' x": "pipe:curl -H 'Authorization: Basic ***' x",
    f"pipe:curl -u anna:{SECRET} https://host/a.tar": "pipe:curl -u *** https://host/a.tar",
    f"pipe:AWS_SECRET_ACCESS_KEY={SECRET} aws s3 cp s3://b/a.tar -": (
        "pipe:AWS_SECRET_ACCESS_KEY=*** aws s3 cp s3://b/a.tar -"
    ),
    f"pipe:fetch --token {SECRET} a.tar": "pipe:fetch --token *** a.tar",
    f"pipe:fetch --api-key='{SECRET}' a.tar": "pipe:fetch --api-key='***' a.tar",
    f"pipe:curl -H 'X-Api-Key: {SECRET}' a.tar": "pipe:curl -H 'X-Api-Key: ***' a.tar",
    "pipe:get hf_abcdefghijklmnopqrstuvwx": "pipe:get ***",
}
WITHOUT = (
    "runs/base/model",
    "https://host/{000..009}.tar",
    "a red apple? yes",
    "16 tokens, token counts: none",
    "data/train-*.tar",
    "pipe:cat a.tar",
    "the tokenizer is: CLIP",
    "s3://bucket/a@b.tar",
    "basically, what a bearer carries",
    "up.*.1",
)


@pytest.mark.parametrize("text", WITH_SECRETS)
def test_secrets_become_stars(text: str) -> None:
    assert redacted(text) == WITH_SECRETS[text]
    assert redacted(redacted(text)) == redacted(text)


@pytest.mark.parametrize("text", WITHOUT)
def test_other_texts_stay(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize(
    ("source", "told"),
    [("/home/anna/private/sd", "sd"), ("runs/base", "runs/base"), ("~/models/x", "x"), ("pocket", "pocket"), ("/", "")],
)
def test_places(source: str, told: str) -> None:
    assert without_place(source) == told
