"""/daemon"""

from litestar import Controller, get, post

from banger.api.services import Services
from banger.model.daemon import DaemonStatus


class Daemon(Controller):
    path = "/daemon"
    tags = ("daemon",)

    @get(summary="The daemon's own facts")
    async def daemon_status(self, services: Services) -> DaemonStatus:
        return services.daemon_status()

    @post("/stop", status_code=202, summary="Stop the daemon; VMs go on running")
    async def stop_daemon(self, services: Services) -> DaemonStatus:
        status = services.daemon_status()
        services.stop_daemon()
        return status
