"""How every command starts and ends: typed flags in, one clear line and exit code 2 on a user's mistake."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from allpairs.errors import UserError

if TYPE_CHECKING:
    from cyclopts import App


def run(app: "App", arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `app` on `arguments` (default: the command line) and exit: 0, its code, or 2 for a user's mistake."""
    from cyclopts import CycloptsError

    try:
        code = app(arguments, exit_on_error=False, print_error=True)
    except CycloptsError:
        sys.exit(2)  # cyclopts has printed the flag, the value and the nearest flag
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
