"""banger config"""

import argparse

from banger.cli.parser import Parser, Verbs


def register(parser: Parser) -> None:
    verb = Verbs(parser).add("show", show, "show every setting")
    verb.add_argument("--origin", action="store_true", help="and where each comes from")


def show(arguments: argparse.Namespace) -> int:
    from banger.cli.render import print_json, table
    from banger.config import load_settings, setting_origins

    settings, origins = load_settings(), setting_origins()
    rows = [(name, f"{getattr(settings, name):g}", origin) for name, origin in origins.items()]
    if arguments.json:
        values = {name: getattr(settings, name) for name in origins}
        print_json({n: {"value": v, "origin": origins[n]} for n, v in values.items()} if arguments.origin else values)
    elif arguments.origin:
        table(("SETTING", "VALUE", "ORIGIN"), rows)
    else:
        for name, value, _ in rows:
            print(f"{name} = {value}")
    return 0
