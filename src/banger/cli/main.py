"""The entry point: parse, run, and turn any error into one line, a hint and an exit code, once."""

import json
import os
import sys
from collections.abc import Sequence

from banger.cli.parser import parse
from banger.model.errors import BangerError
from banger.model.text import harmless

INTERRUPTED = 130
# what an error's details may have of lines for a person, and how each is marked
_TOLD = (("checks", "check"), ("opencode", "opencode"), ("output", "output"), ("console", "console"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (DESIGN 3)."""
    words = list(sys.argv[1:] if argv is None else argv)
    own = words[: words.index("--")] if "--" in words else words
    try:
        arguments = parse(words)
        return int(arguments.handler(arguments))
    except BangerError as error:
        return fail(error, as_json="--json" in own, debug="--debug" in own)
    except KeyboardInterrupt:
        if "--debug" not in own:
            _hush()
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read our output has left; stop the interpreter from complaining about it at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if "--debug" in own:
            raise
        return fail(BangerError(str(error), hint="--debug shows where"), as_json="--json" in own, debug=False)
    finally:
        _report_defects("--debug" in own)


def _hush() -> None:
    """What an interrupt left half-made, such as an event loop, complains when it is thrown away: to nobody."""
    import warnings

    sys.unraisablehook = lambda _: None
    warnings.simplefilter("ignore")


def _report_defects(debug: bool) -> None:
    """No traceback reaches a user: a defect of ours becomes one line, unless --debug asks for all of it."""
    if not debug:
        sys.excepthook = lambda kind, value, _: print(
            f"error: banger met a defect: {kind.__name__}: {value}\nhint:  run it again with --debug and report it",
            file=sys.stderr,
        )


def fail(error: BangerError, *, as_json: bool, debug: bool) -> int:
    """Show an error on stderr (and as JSON on stdout when asked) and return its exit code."""
    if as_json:
        print(json.dumps({"error": error.to_dict()}, indent=2, default=str))
    print(f"error: {error.message}", file=sys.stderr)
    for source, title in _TOLD:
        for line in error.details.get(source) or ():
            print(f"  {title} | {harmless(line)}", file=sys.stderr)
    if error.hint:
        print(f"hint:  {error.hint}", file=sys.stderr)
    if debug:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    return error.exit_code
