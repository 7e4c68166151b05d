"""What a user did wrong, said once and clearly: shared by every floor of the house."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in something the user gave (config, data, flag, checkpoint); its message is shown without a traceback.

    The message says what was wrong, where (file, key, sample id), what is accepted and, for a typo, the nearest choice.
    """


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of `choices`, or the list of choices when none is close."""
    known = sorted(choices)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if match:
        return f"; did you mean {match[0]!r}?"
    return f"; accepted: {', '.join(known)}"
