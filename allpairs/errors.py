"""What a user did wrong, said once and clearly: shared by every floor of the house."""

import difflib
from collections import Counter
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in something the user gave (config, data, flag, checkpoint); its message is shown without a traceback.

    The message says what was wrong, where (file, key, sample id), what is accepted and, for a typo, the nearest choice.
    """


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of `choices`, or the list of choices when none is close.

    Of equally close ones it is that with the same letters: two that changed places are the commonest slip.
    """
    known = sorted(choices)
    matches = difflib.get_close_matches(name, known, n=5, cutoff=0.6)
    if matches:

        def closeness(match: str) -> tuple[float, int]:
            return difflib.SequenceMatcher(None, match, name).ratio(), (Counter(match) & Counter(name)).total()

        return f"; did you mean {max(matches, key=closeness)!r}?"
    return f"; accepted: {', '.join(known)}"
