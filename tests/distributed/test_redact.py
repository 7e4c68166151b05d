import pytest

from distributed.tracking.redact import REDACTED, redact


def test_secrets_go_and_everything_else_stays():
    tree = {
        "api_key": "abc",
        "nested": {"hub_token": "x", "keys": ["a"], "max_caption_tokens": 32, "password": ""},
        "url": "https://user:pass@host/path",
        "note": "use hf_" + "a" * 30 + " here",
        "wandb": "0123456789abcdef0123456789abcdef01234567",
        "names": ["x", {"secret": 1}],
    }
    assert redact(tree) == {
        "api_key": REDACTED,
        "nested": {"hub_token": REDACTED, "keys": ["a"], "max_caption_tokens": 32, "password": ""},
        "url": f"https://{REDACTED}@host/path",
        "note": f"use {REDACTED} here",
        "wandb": REDACTED,
        "names": ["x", {"secret": REDACTED}],
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HF_TOKEN=abc train.epochs=3", f"HF_TOKEN={REDACTED} train.epochs=3"),
        ("https://host/x?token=abc&page=2", f"https://host/x?token={REDACTED}&page=2"),
        ("{password: 'a b', keys: [1]}", f"{{password: {REDACTED}, keys: [1]}}"),
        ("data.max_caption_tokens=32 monkey=x", "data.max_caption_tokens=32 monkey=x"),
        ("sk-" + "a" * 24, REDACTED),
        ("wandb_v1_" + "a" * 40, REDACTED),
        ("glpat-" + "a" * 20, REDACTED),
    ],
)
def test_a_setting_inside_a_text_is_redacted(text, expected):
    assert redact([text]) == redact(redact([text])) == [expected]


def test_the_word_after_a_secret_flag_is_redacted_and_no_other():
    assert redact(["--token", "abc", "--api-key", "x", "--keys", "y"]) == [
        "--token", REDACTED, "--api-key", REDACTED, "--keys", "y"
    ]  # fmt: skip


def test_a_git_commit_is_not_mistaken_for_a_key():
    # Provenance carries one on purpose: it is 40 hex digits too.
    assert redact({"git_commit": "a" * 40}) == {"git_commit": "a" * 40}
