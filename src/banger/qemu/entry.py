"""banger-vmm's first module, before any other is imported."""

import importlib
import sys
from types import ModuleType


def _without_tls() -> None:
    """Load asyncio and the QMP client without OpenSSL: 2.7 MiB of each VM's memory that would never be used.

    asyncio does without a module `ssl`, as in a Python that was built so; the QMP client wants one name of it, for
    its annotations only.
    """
    sys.modules["ssl"] = None  # type: ignore[assignment]
    importlib.import_module("asyncio")
    stand_in = ModuleType("ssl")
    stand_in.SSLContext = object  # type: ignore[attr-defined]
    sys.modules["ssl"] = stand_in
    importlib.import_module("qemu.qmp")
    del sys.modules["ssl"]


def main() -> int:
    _without_tls()
    from banger.qemu.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
