"""How every command starts and ends: typed flags in, one clear line and exit code 2 on a user's mistake."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NoReturn

from allpairs.errors import UserError
from allpairs.terminal import visible

if TYPE_CHECKING:
    from cyclopts import App


Resume = bool | Literal["auto"]
"""`--resume`: what is there must go on; `--resume auto`: it goes on where it is there, and starts where it is not."""


def run(app: "App", arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `app` on `arguments` (default: the command line) and exit: 0, its code, or 2 for a user's mistake."""
    from cyclopts import CycloptsError

    words = list(sys.argv[1:] if arguments is None else arguments)
    # A bare --resume takes no value, whatever follows it; behind "--" stands another command's.
    own = words.index("--") if "--" in words else len(words)
    words[:own] = [
        f"{word}=true" if word == "--resume" and following != "auto" else word
        for word, following in zip(words[:own], [*words, ""][1 : own + 1], strict=True)
    ]
    try:
        code = app(words, exit_on_error=False, print_error=True)
    except CycloptsError:
        sys.exit(2)  # cyclopts has printed the flag, the value and the nearest flag
    except UserError as error:
        print(f"error: {visible(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
