"""banger-vmm against the specification file itself: every path, every schema, both directions."""

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from banger.engine import payload
from banger.model import firecracker
from banger.model.machine import Disk, Machine, Nic
from banger.qemu.refusals import REFUSALS
from tests.support import specification
from tests.support.vmm import Client, serving

pytestmark = specification.needed
ITEM = "item1"
# What this engine refuses of a schema it takes, with the words that say so
REFUSED_FIELDS = {
    ("MachineConfiguration", "cpu_template"),
    ("MachineConfiguration", "track_dirty_pages"),
    ("NetworkInterface", "rx_rate_limiter"),
    ("NetworkInterface", "tx_rate_limiter"),
    ("Drive", "socket"),
    ("Balloon", "free_page_hinting"),
}
AFTER_START = {"PATCH"}
OPERATIONS = specification.operations()


class Room:
    """A client, and files that requests may name."""

    def __init__(self, client: Client, directory: Path) -> None:
        self.client = client
        self.file = str(directory / "file")
        self.values: dict[str, Any] = {
            "drive_id": ITEM,
            "iface_id": ITEM,
            "path_on_host": self.file,
            "kernel_image_path": self.file,
            "initrd_path": self.file,
            "socket": self.file,
            "log_path": str(directory / "log"),
            "metrics_path": str(directory / "metrics"),
            "serial_out_path": str(directory / "serial"),
            "uds_path": str(directory / "v.sock"),
            "host_dev_name": "user:closed",
            "guest_mac": "02:00:00:00:00:01",
        }


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    (tmp_path / "file").write_bytes(b"x")
    with serving(tmp_path / "api.sock") as client:
        yield Room(client, tmp_path)


def taken(method: str, path: str) -> bool:
    return (method, path.replace("{drive_id}", "{id}").replace("{iface_id}", "{id}")) not in REFUSALS


def real(path: str) -> str:
    return path.replace("{drive_id}", ITEM).replace("{iface_id}", ITEM).replace("{id}", ITEM)


WITH_BODY = [(method, path, schema) for method, path, schema in OPERATIONS if schema and taken(method, path)]


def instances(name: str, room: Room, *, every: bool = False) -> st.SearchStrategy[dict[str, Any]]:
    """Documents that the schema allows; `every` field, or any choice of the optional ones."""
    schema = specification.definition(name)
    required = set(schema.get("required", ()))
    fields = {field: values(field, kind, room, every=every) for field, kind in schema["properties"].items()}
    must = {field: strategy for field, strategy in fields.items() if field in required or every}
    may = {field: strategy for field, strategy in fields.items() if field not in must}
    return st.fixed_dictionaries(must, optional=may)


def values(field: str, kind: dict[str, Any], room: Room, *, every: bool) -> st.SearchStrategy[Any]:
    if field in room.values:
        return st.just(room.values[field])
    if "$ref" in kind:
        name = kind["$ref"].rpartition("/")[2]
        referred = specification.definition(name)
        return values(field, referred, room, every=every) if "enum" in referred else instances(name, room, every=every)
    if "enum" in kind:
        return st.sampled_from(kind["enum"])
    if kind["type"] == "integer":
        # the sizes that Firecracker itself takes: of memory, of a balloon in 128 MiB, of 16 bits
        low, high = {
            "stats_polling_interval_s": (1, 65535),
            "amount_mib": (0, 128),
            "mem_size_mib": (1, 2048),
            "guest_cid": (3, 2**32 - 2),
        }.get(field, (kind.get("minimum", 0), kind.get("maximum", 65535)))
        step = 2 if field in ("mem_size_mib", "vcpu_count") else 1
        return st.integers(-(-low // step), high // step).map(lambda n: n * step)
    if kind["type"] == "object":
        return st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2)
    return st.booleans() if kind["type"] == "boolean" else st.text(min_size=1, max_size=20)


def refused(schema: str, document: dict[str, Any]) -> bool:
    """Whether the document asks for something that this engine says it does not have."""
    asked = {field for field, value in document.items() if value not in (False, "None", None)}
    return any((schema, field) in REFUSED_FIELDS for field in asked) or schema == "PartialNetworkInterface"


def prepare(room: Room, method: str) -> None:
    """A machine in the state in which requests of this method are allowed."""
    if method in AFTER_START:
        room.client.ask("PUT", "/boot-source", {"kernel_image_path": room.file})
        statistics = {"amount_mib": 0, "deflate_on_oom": True, "stats_polling_interval_s": 1}
        room.client.ask("PUT", "/balloon", statistics)


def test_every_operation_is_answered(room: Room) -> None:
    for method, path, schema in OPERATIONS:
        status, body = room.client.ask(method, real(path), {} if schema else None)
        assert status in (200, 204, 400), (method, path)
        if status == 400:
            specification.validate(body, "Error")
            assert "Invalid request method" not in body["fault_message"]
            assert taken(method, path) or "not supported by banger-vmm: " in body["fault_message"]


def test_every_refusal_is_of_the_specification() -> None:
    known = {(method, real(path).replace(ITEM, "{id}")) for method, path, _ in OPERATIONS}
    assert set(REFUSALS) <= known


@pytest.mark.parametrize(("method", "path", "schema"), WITH_BODY)
def test_what_the_schema_allows_is_taken(
    tmp_path_factory: pytest.TempPathFactory, method: str, path: str, schema: str
) -> None:
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        directory = tmp_path_factory.mktemp("c")
        (directory / "file").write_bytes(b"x")
        with serving(directory / "api.sock") as client:
            room = Room(client, directory)
            prepare(room, method)
            if method in AFTER_START and path != "/machine-config":
                client.ask("PUT", "/actions", {"action_type": "InstanceStart"})
            document = data.draw(instances(schema, room))
            if schema == "InstanceActionInfo" and document["action_type"] != "InstanceStart":
                client.ask("PUT", "/actions", {"action_type": "InstanceStart"})
            specification.validate(document, schema)
            if schema == "Drive" and "path_on_host" not in document:
                return  # the specification's own text asks for it
            status, body = client.ask(method, real(path), document)
            if refused(schema, document):
                assert (status, "not supported by banger-vmm: " in body["fault_message"]) == (400, True), document
            else:
                assert status == 204, (document, body)

    check()


@pytest.mark.parametrize(("method", "path", "schema"), WITH_BODY)
def test_what_the_schema_forbids_is_refused_and_changes_nothing(
    room: Room, method: str, path: str, schema: str
) -> None:
    prepare(room, method)
    good = whole(schema, room)
    if method in AFTER_START and path != "/machine-config":
        room.client.ask("PUT", "/actions", {"action_type": "InstanceStart"})
    before = room.client.ask("GET", "/vm/config")
    count = 0
    for bad in spoilt(schema, good, partial=(method, path) == ("PATCH", "/machine-config")):
        status, body = room.client.ask(method, real(path), bad)
        assert status == 400, bad
        assert "deserializing" in body["fault_message"], bad
        count += 1
    assert count >= 2
    assert room.client.ask("GET", "/vm/config") == before
    assert room.client.vmm.told in ([], ["start"])


def whole(schema: str, room: Room) -> dict[str, Any]:
    """One document with every field."""
    made: list[dict[str, Any]] = []

    @settings(max_examples=1, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(instances(schema, room, every=True))
    def take(document: dict[str, Any]) -> None:
        made.append(document)

    take()
    return made[0]


def spoilt(name: str, good: dict[str, Any], *, partial: bool = False) -> Iterator[Any]:
    """The document with required fields missing, wrong types, values out of range, an unknown field; nested too."""
    schema = specification.definition(name)
    yield [good]
    yield "text"
    yield good | {"no_such_field": None}
    if not partial:
        for field in schema.get("required", ()):
            yield {key: value for key, value in good.items() if key != field}
    for field, kind in schema["properties"].items():
        for wrong in wrong_types(kind):
            yield good | {field: wrong}
        if "$ref" in kind and isinstance(good[field], dict):
            for inner in spoilt(kind["$ref"].rpartition("/")[2], good[field]):
                yield good | {field: inner}


def wrong_types(kind: dict[str, Any]) -> list[Any]:
    if "$ref" in kind:
        referred = specification.definition(kind["$ref"].rpartition("/")[2])
        return wrong_types(referred)
    if "enum" in kind:
        return ["NoSuchWord", 1, True, {}, []]
    outside = [kind["minimum"] - 1] if "minimum" in kind else []
    outside += [kind["maximum"] + 1] if "maximum" in kind else []
    return {
        "integer": ["1", 1.5, True, {}, [], *outside],
        "boolean": ["true", 1, {}, []],
        "string": [1, True, {}, []],
        "object": ["text", 1, True, []],
    }[kind["type"]]


def test_what_is_answered_is_as_the_schema_says(room: Room) -> None:
    for method, path, schema in WITH_BODY:
        if method == "PUT" and path != "/actions":
            document = copy.copy(whole(str(schema), room))
            document = {f: v for f, v in document.items() if (schema, f) not in REFUSED_FIELDS}
            assert room.client.ask(method, real(path), document)[0] == 204, document
    for _ in range(2):  # before the start and after it
        for method, path, _schema in OPERATIONS:
            if method == "GET" and taken(method, path):
                status, body = room.client.ask(method, real(path))
                name = specification.answer(method, path)
                assert name is not None
                specification.validate(body, name if status == 200 else "Error")
        room.client.ask("PUT", "/actions", {"action_type": "InstanceStart"})
    assert room.client.ask("GET", "/balloon/statistics")[0] in (200, 400)
    assert room.client.ask("GET", "/")[1]["state"] == "Running"


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in specification.document()["definitions"]
        if name != "Error" and isinstance(getattr(firecracker, name, None), type)
    ],
)
def test_our_documents_have_the_fields_of_the_specification(name: str) -> None:
    schema = specification.definition(name)
    ours = {field.encode_name: field for field in msgspec.structs.fields(getattr(firecracker, name))}
    theirs = set(schema["properties"])
    # counters that newer guests tell and QEMU 7.2 does not know
    assert theirs - set(ours) <= ({f for f in theirs if "_" in f} if name == "BalloonStats" else set())
    assert set(ours) <= theirs
    assert {f for f, field in ours.items() if field.required} == set(schema.get("required", ()))


def machines() -> Iterator[Machine]:
    """Every shape of VM that banger makes."""
    root = Disk(id="root", path="/s/root.qcow2", root=True)
    work = Disk(id="work", path="/s/work.ext4")
    nic = Nic(id="eth0", host_device="tap0", mac="02:00:00:00:00:01", address="10.0.0.2", prefix=24,
              gateway="10.0.0.1", dns=("10.0.0.1",))  # fmt: skip
    for disks in ((root,), (root, work), (root, Disk(id="ro", path="/s/ro.ext4", read_only=True))):
        for nics in ((), (nic,)):
            yield Machine(id="0123", hostname="a", vcpu=2, memory_mib=512, kernel="/k", initramfs="/i",
                          boot_args="quiet", disks=disks, nics=nics, vsock_socket="/r/v.sock")  # fmt: skip


@pytest.mark.parametrize("machine", list(machines()))
def test_what_we_send_is_as_the_schema_says(machine: Machine) -> None:
    schemas = {(method, path): schema for method, path, schema in OPERATIONS}
    regrown = [payload.regrow(disk) for disk in machine.disks]
    for method, path, body in (*payload.configuration(machine), payload.START, *regrown):
        collection, _, item = path[1:].partition("/")
        template = {"drives": "/drives/{drive_id}", "network-interfaces": "/network-interfaces/{iface_id}"}.get(
            collection, path
        )
        schema = schemas[method, template]
        assert schema is not None
        specification.validate(msgspec.json.decode(msgspec.json.encode(body)), schema)
        assert not item or item in (getattr(body, "drive_id", ""), getattr(body, "iface_id", ""))
    assert os.sep in machine.kernel
