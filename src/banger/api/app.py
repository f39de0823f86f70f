"""The daemon's HTTP application. OpenAPI is served at /schema."""

from litestar import Litestar
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from banger import __version__
from banger.api.errors import HANDLERS
from banger.api.routes.capacity import CapacityRoutes
from banger.api.routes.daemon import Daemon
from banger.api.routes.engines import Engines
from banger.api.routes.images import Images
from banger.api.routes.operations import OperationRoutes
from banger.api.routes.vms import Vms
from banger.api.routes.volumes import Volumes
from banger.api.services import Services


def create_app(services: Services) -> Litestar:
    """Build the application around services that exist already."""
    return Litestar(
        route_handlers=[CapacityRoutes, Daemon, Engines, Images, OperationRoutes, Vms, Volumes],
        dependencies={"services": Provide(lambda: services, sync_to_thread=False, use_cache=True)},
        exception_handlers=HANDLERS,
        logging_config=None,
        response_headers={"X-Banger-Version": __version__},
        openapi_config=OpenAPIConfig(
            title="banger", version=__version__, path="/schema", render_plugins=[JsonRenderPlugin(path="/")]
        ),
    )
