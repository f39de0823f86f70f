"""Starts the agent: `python3 -I -S <root>/banger/guest/agent/__main__.py [--unix PATH]`.

Python compiles this file at every start and keeps no bytecode of it, so it holds next to nothing.
"""

import sys

# Isolated mode leaves <root> off the path. The tree below it has the same shape in guest and repository.
sys.path.insert(0, __file__.rsplit("/", 4)[0])

from banger.guest.agent.server import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
