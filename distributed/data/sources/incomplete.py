"""What to do with a sample of which a part is missing: stop the build, or leave it out and count it."""

from collections import Counter

from allpairs.errors import UserError


class Incomplete:
    """Strict by default; with `skip` it counts what the sources leave out.

    Attributes:
        counts: samples left out, by cause.
    """

    def __init__(self, *, skip: bool) -> None:
        self._skip = skip
        self.counts: Counter[str] = Counter()

    def report(self, cause: str, detail: str) -> None:
        """Count one sample that is left out, or raise UserError when none may be."""
        if not self._skip:
            raise UserError(f"{detail}: {cause}; complete it, or leave such samples out with --skip-incomplete")
        self.counts[cause] += 1
