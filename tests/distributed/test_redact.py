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


def test_a_git_commit_is_not_mistaken_for_a_key():
    # Provenance carries one on purpose: it is 40 hex digits too.
    assert redact({"git_commit": "a" * 40}) == {"git_commit": "a" * 40}
