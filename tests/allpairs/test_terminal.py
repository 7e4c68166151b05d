"""What captions, keys and names of files may do to a terminal: nothing."""

from cyclopts import App

from allpairs.errors import UserError
from allpairs.terminal import visible


def test_what_a_terminal_obeys_is_written_out():
    assert visible("a\x1b[2J\rb\x07\x9b") == "a\\x1b[2J\\x0db\\x07\\x9b"
    assert visible("\u202egnp.exe") == "\\u202egnp.exe"
    assert visible("caf\udce9") == "caf\\xe9"
    assert visible("two\nlines\tbóng đá שלום 日本 🦊\u200d🔥") == "two\nlines\tbóng đá שלום 日本 🦊\u200d🔥"


def test_the_mistakes_of_every_command_are_written_so(in_process):
    app = App()

    @app.default
    def fail(text: str) -> None:
        raise UserError(f"no {text!s} in the data")

    code, _, err = in_process(app)("\x1b]0;title\x07")
    assert (code, err) == (2, "error: no \\x1b]0;title\\x07 in the data\n")
