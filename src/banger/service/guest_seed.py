"""What every root gets of banger, whoever made it."""

from collections.abc import Mapping

from banger.guest import bundle
from banger.guest.opencode import opencode_files, opencode_links
from banger.images.rootfs import Seed
from banger.model.home import SHELL_FILES


def guest_seed(key: str, agent: Mapping[str, bytes], *, opencode: bool, shell_files: bool = False) -> Seed:
    """The guest's side of banger with this agent in it, and the key that `vm ssh` will use.

    `shell_files`: root's home gets ours in place of what is there.
    """
    ours = {f"{bundle.LIBRARY}/{name}" for name in bundle.agent_tree()}
    found = {path: content for path, content in bundle.agent_files().items() if path not in ours}
    found |= {f"{bundle.LIBRARY}/{name}": (content, 0o644) for name, content in agent.items()}
    found |= opencode_files() if opencode else {}
    files = {f"/{path}": content for path, content in found.items()}
    if shell_files:
        files |= {f"/root/{file.path}": (file.content, file.mode) for file in SHELL_FILES}
    files["/root/.ssh/authorized_keys"] = (f"{key}\n".encode(), 0o600)
    made = bundle.links() | (opencode_links() if opencode else {})
    links = {f"/{path}": target for path, target in made.items()}
    return Seed(files=files, symlinks=links, compile_dirs=tuple(f"/{path}" for path in bundle.COMPILE))
