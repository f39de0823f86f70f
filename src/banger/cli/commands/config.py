"""banger config"""

import argparse
import sys

from banger.cli.parser import Parser, Verbs


def register(parser: Parser) -> None:
    verb = Verbs(parser).add("show", show, "show every setting")
    verb.add_argument("--origin", action="store_true", help="and where each comes from")


def show(arguments: argparse.Namespace) -> int:
    from banger.cli.render import print_json, table
    from banger.config import read_config

    settings, origins, warnings = read_config()
    for text in warnings:
        print(f"warning: {text}", file=sys.stderr)
    values = {name: getattr(settings, name) for name in origins}
    if arguments.json:
        print_json({n: {"value": v, "origin": origins[n]} for n, v in values.items()} if arguments.origin else values)
    elif arguments.origin:
        table(("SETTING", "VALUE", "ORIGIN"), ((name, _shown(v), origins[name]) for name, v in values.items()))
    else:
        for name, value in values.items():
            print(f"{name} = {_shown(value)}")
    return 0


def _shown(value: float | int | str) -> str:
    """As it stands in the file."""
    import json

    return (
        json.dumps(value, ensure_ascii=False)
        if isinstance(value, str)
        else f"{value:{'d' if isinstance(value, int) else 'g'}}"
    )
