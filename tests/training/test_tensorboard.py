"""Event files, parsed with the messages' published definition and the protocol buffers library."""

import struct

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from big_ssl.training import tensorboard
from big_ssl.training.tensorboard import EventFile

# tensorflow/core/util/event.proto and framework/summary.proto: {message: {field: (number, type)}}.
_MESSAGES = {
    "Value": dict(tag=(1, "STRING"), simple_value=(2, "FLOAT")),
    "Summary": dict(value=(1, "Value")),
    "SessionLog": dict(status=(1, "INT32")),
    "Event": dict(
        wall_time=(1, "DOUBLE"),
        step=(2, "INT64"),
        file_version=(3, "STRING"),
        summary=(5, "Summary"),
        session_log=(7, "SessionLog"),
    ),
}


def _event_class():
    file = descriptor_pb2.FileDescriptorProto(name="events.proto", package="events", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            several = kinds.LABEL_REPEATED if field == "value" else kinds.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, label=several)
            if kind in _MESSAGES:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".events.{kind}"
            else:
                added.type = kinds.Type.Value(f"TYPE_{kind}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("events.Event"))


def events(content: bytes) -> list:
    """Parses a file's events, and checks the framing of each record."""
    actual, start, event = [], 0, _event_class()
    while start < len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        text = content[start + 12 : start + 12 + length]
        assert tensorboard.record(text) == content[start : start + 16 + length]
        actual.append(event.FromString(text))
        start += 16 + length
    return actual


@pytest.mark.parametrize(
    ("content", "checksum"), [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43)]
)
def test_the_checksum_is_crc_32c(content, checksum):
    """RFC 3720, appendix B.4, and the usual check value."""
    assert tensorboard.checksum(content) == checksum


def test_a_records_bytes_equal_tensorboardxs():
    """tensorboardX 2.6.5 wrote these bytes."""
    assert tensorboard.record(b"a").hex() == "01000000000000000175de4161786ee428"


def test_scalars_round_trip(tmp_path):
    file = EventFile(tmp_path, 4)
    file.write(300, {"train/loss": 2.5, "time/ä": -1e9})
    file.close()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    version, start, scalars = events(path.read_bytes())
    assert (version.file_version, version.step) == ("brain.Event:2", 0)
    assert (start.session_log.status, start.step) == (1, 4)
    assert scalars.step == 300
    assert [(v.tag, v.simple_value) for v in scalars.summary.value] == [("train/loss", 2.5), ("time/ä", -1e9)]
    assert version.wall_time <= scalars.wall_time
