"""An image goes to another person: theirs is the key that its machines let in, and nobody else's."""

from pathlib import Path

from tests.support.home import Home
from tests.vm.conftest import track


def test_an_image_moves_to_a_home_with_another_key(home: Home, tmp_path: Path) -> None:
    archive = tmp_path / "debian.banger.tar.zst"
    home.run("image", "export", "debian", "-o", str(archive))
    there = track(Home())
    try:
        there.run("image", "import", str(archive), "--name", "moved")
        archive.unlink()
        there.run("image", "verify", "moved")
        there.run("vm", "create", "--name", "v", "--image", "moved")
        there.run("vm", "ssh", "v", "true")
        ours, theirs = ((one.state / "ssh" / "id_ed25519.pub").read_text().split()[1] for one in (home, there))
        assert ours != theirs
        script = "umount -l /root; cat /root/.ssh/authorized_keys"
        let_in = there.run("vm", "exec", "v", "--", "cat", "/root/.ssh/authorized_keys").stdout.decode()
        below = there.run("vm", "exec", "v", "--", "sh", "-c", script).stdout.decode()
        for keys in (let_in, below):
            assert theirs in keys
            assert ours not in keys
    finally:
        there.close()
