"""Service definitions for each init a guest may have: what starts, and what a guest does without.

`FILES` and `LINKS` are what an image gets, by init. Every service costs time when emulated.
"""

_UNITS = "etc/systemd/system"

# Init -> file below `files` here -> its path in the guest.
FILES = {
    "systemd": {
        "banger-agent.service": f"{_UNITS}/banger-agent.service",
        "banger-setup.service": f"{_UNITS}/banger-setup.service",
        "banger-console.service": f"{_UNITS}/banger-console.service",
        "banger-hostkey.service": f"{_UNITS}/banger-hostkey.service",
        "ssh.service.conf": f"{_UNITS}/ssh.service.d/banger.conf",
        "journald.conf": "etc/systemd/journald.conf.d/banger.conf",
    },
    "openrc": {
        "banger-agent.openrc": "etc/init.d/banger-agent",
        "banger-setup.openrc": "etc/init.d/banger-setup",
        "banger-hostkey.openrc": "etc/init.d/banger-hostkey",
        "sshd.openrc": "etc/init.d/sshd",
    },
    "runit": {
        "banger-agent.runit": "etc/sv/banger-agent/run",
        "banger-setup.runit": "etc/runit/core-services/90-banger-setup.sh",
        "sshd.runit": "etc/sv/sshd/run",
    },
}

# OpenRC service -> its runlevel. `sysinit` is the first; banger-hostkey is started by sshd's need of it.
_RUNLEVELS = {"banger-setup": "sysinit", "banger-agent": "sysinit", "sshd": "default"}

_RUNIT_SERVICES = ("banger-agent", "sshd")

# Unit -> (target that wants it, the unit file).
_ENABLED = {
    "banger-agent.service": ("sysinit.target", "/etc/systemd/system/banger-agent.service"),
    "banger-setup.service": ("sysinit.target", "/etc/systemd/system/banger-setup.service"),
    "banger-console.service": ("multi-user.target", "/etc/systemd/system/banger-console.service"),
    "ssh.service": ("multi-user.target", "/usr/lib/systemd/system/ssh.service"),
}

# Unit -> why a disposable machine does without it.
_MASKED = {
    "getty@tty1.service": "there is no screen",
    "getty-static.service": "there is no screen",
    "serial-getty@ttyS0.service": "banger-console gives a shell on demand",
    "console-getty.service": "the console is a log",
    "systemd-logind.service": "no seats, no lids; the agent asks PID 1 itself to power off",
    "systemd-ask-password-console.path": "nobody is there to type a passphrase",
    "systemd-ask-password-wall.path": "nobody is there to type a passphrase",
    "systemd-timesyncd.service": "the clock comes from the host",
    "systemd-networkd.service": "banger-setup configures the network",
    "systemd-networkd.socket": "banger-setup configures the network",
    "systemd-networkd-wait-online.service": "the network is up before anything asks",
    "systemd-network-generator.service": "the kernel command line has no ip=",
    "systemd-resolved.service": "banger-setup writes resolv.conf",
    "networking.service": "banger-setup configures the network",
    "systemd-random-seed.service": "virtio-rng and the CPU seed the kernel",
    "systemd-pstore.service": "there is no store for crash records",
    "systemd-journal-flush.service": "the journal stays in memory",
    "systemd-journal-catalog-update.service": "the image is finished when it is built",
    "systemd-hwdb-update.service": "the image is finished when it is built",
    "systemd-update-done.service": "the image is finished when it is built",
    "systemd-firstboot.service": "nobody is there to answer questions",
    "systemd-sysusers.service": "the image is finished when it is built",
    "ldconfig.service": "the image is finished when it is built",
    "systemd-machine-id-commit.service": "the root is writable, so PID 1 has stored the machine id itself",
    "systemd-remount-fs.service": "the initramfs mounts the root as it stays",
    "systemd-fsck-root.service": "the root is a fresh layer over a checked image",
    "systemd-update-utmp.service": "no log of boots",
    "systemd-update-utmp-runlevel.service": "no log of runlevels",
    "systemd-binfmt.service": "no foreign executables",
    "proc-sys-fs-binfmt_misc.automount": "no foreign executables",
    "sys-kernel-debug.mount": "mount it when you debug a kernel",
    "sys-kernel-tracing.mount": "mount it when you trace a kernel",
    "sys-kernel-config.mount": "nothing here is configured through configfs",
    "sys-fs-fuse-connections.mount": "fuse works without its control files",
    "dev-hugepages.mount": "a small machine reserves no huge pages",
    "modprobe@configfs.service": "loads a module for a mount that is masked",
    "modprobe@drm.service": "there is no screen",
    "modprobe@fuse.service": "loads on first use",
    "modprobe@dm_mod.service": "loads on first use",
    "modprobe@loop.service": "loads on first use",
    "modprobe@efi_pstore.service": "there is no firmware to store crash records",
    "systemd-repart.service": "the root has no partitions",
    "systemd-pcrphase.service": "there is no TPM",
    "systemd-pcrphase-sysinit.service": "there is no TPM",
    "kmod-static-nodes.service": "device nodes come with the modules",
    "apt-daily.timer": "a disposable machine is not upgraded behind its user's back",
    "apt-daily-upgrade.timer": "a disposable machine is not upgraded behind its user's back",
    "dpkg-db-backup.timer": "a disposable machine keeps no backups",
    "e2scrub_all.timer": "there is no LVM",
    "e2scrub_reap.service": "there is no LVM",
    "fstrim.timer": "the disk goes with the machine",
    "logrotate.timer": "the journal is bounded",
    "man-db.timer": "there are no manual pages to index",
    "systemd-tmpfiles-clean.timer": "a disposable machine is not tidied",
    "cron.service": "nothing is scheduled",
}


def _systemd_links() -> dict[str, str]:
    made = {
        f"{_UNITS}/default.target": "/usr/lib/systemd/system/multi-user.target",
        # Without udev's naming the interface stays eth0, whatever bus it is on, and keeps the address it was given.
        "etc/systemd/network/99-default.link": "/dev/null",
    }
    made |= {f"{_UNITS}/{unit}": "/dev/null" for unit in _MASKED}
    return made | {f"{_UNITS}/{target}.wants/{unit}": place for unit, (target, place) in _ENABLED.items()}


def _runit_links() -> dict[str, str]:
    """The enabled services, and where runsv(8) keeps their state: in /run, so that none outlives a boot."""
    made = {f"etc/runit/runsvdir/default/{name}": f"/etc/sv/{name}" for name in _RUNIT_SERVICES}
    return made | {f"etc/sv/{name}/supervise": f"/run/runit/supervise.{name}" for name in _RUNIT_SERVICES}


# Init -> path in the guest -> target of the link.
LINKS = {
    "systemd": _systemd_links(),
    "openrc": {f"etc/runlevels/{level}/{name}": f"/etc/init.d/{name}" for name, level in _RUNLEVELS.items()},
    "runit": _runit_links(),
}
