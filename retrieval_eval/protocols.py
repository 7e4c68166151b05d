"""The evaluation protocols by name. One for now: any two galleries with a ragged list of positives."""

from allpairs.errors import UserError, nearest

PROTOCOLS = {"custom": "any two galleries with a ragged list of positives"}


def check_protocol(name: str) -> str:
    """Return `name` if it is a known protocol; UserError with the accepted ones otherwise."""
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}{nearest(name, PROTOCOLS)} (accepted: {', '.join(PROTOCOLS)})")
    return name
