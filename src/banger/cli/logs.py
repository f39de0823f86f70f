"""`vm logs`: the end of a log, and with --follow what comes."""

import argparse
import sys

from banger.cli.connect import client, required_name
from banger.cli.plain import Plain
from banger.model.errors import Invalid
from banger.paths import default_paths

BYTES_MAX = 4 << 20


def run_logs(arguments: argparse.Namespace) -> int:
    if arguments.lines < 0:
        raise Invalid("--lines cannot be negative", hint="choose 0 or more")
    if arguments.follow and arguments.json:
        raise Invalid("--json prints one document, and --follow has no end", hint="leave one of them out")
    limit = min(BYTES_MAX, max(4096, arguments.lines * 400))
    if arguments.follow:
        return _follow(arguments, limit)
    data = client().vm_logs(required_name(arguments), arguments.source, limit)
    lines = data.decode(errors="replace").splitlines()
    lines = lines[-arguments.lines :] if arguments.lines else []
    if arguments.json:
        from banger.cli.render import print_json

        print_json({"source": arguments.source, "lines": lines})
    else:
        plain = Plain(terminal=sys.stdout.isatty())
        print(plain.feed("\n".join(lines).encode()) + plain.end())
    return 0


def _follow(arguments: argparse.Namespace, limit: int) -> int:
    from banger.client.logs import LogStream

    vm = client().show_vm(required_name(arguments))
    data = client().vm_logs(vm["id"], arguments.source, limit)
    stream = LogStream(default_paths(), vm["id"], arguments.source, data)
    plain = Plain(terminal=sys.stdout.isatty())
    try:
        _show(plain.feed(_last_lines(data, arguments.lines)))
        while not stream.ended:
            _show(plain.feed(stream.read()))
    finally:
        stream.close()
        _show(plain.end())
    print(f"{vm['name']} was deleted", file=sys.stderr)
    return 0


def _last_lines(data: bytes, lines: int) -> bytes:
    """The last ones; a line that has no end yet is one of them, as the stream goes on with it."""
    return b"".join(data.splitlines(keepends=True)[-lines:]) if lines else b""


def _show(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()
