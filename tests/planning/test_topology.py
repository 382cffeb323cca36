"""Names of TPU slices."""

import re

import pytest

from big_ssl.planning import topology
from big_ssl.planning.topology import TopologyError


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("name", "slices", "generation", "shape", "chips"),
    [
        ("v5e:16x16", 1, "v5e", (16, 16), 256),
        ("2xv5e:16x16", 2, "v5e", (16, 16), 512),
        ("v5p:4x8x8", 1, "v5p", (4, 8, 8), 256),
        ("v4:2x2x1", 1, "v4", (2, 2, 1), 4),
        ("v6e:1x1", 1, "v6e", (1, 1), 1),
        ("v3:32x32", 1, "v3", (32, 32), 1024),
        ("v5p:16x16x24", 1, "v5p", (16, 16, 24), 6144),
    ],
)
def test_names(name, slices, generation, shape, chips):
    actual = topology.parse(name)
    assert actual == (slices, generation, shape)
    assert actual.chips == chips
    assert str(actual) == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "v5e-256",
            "write a generation (v3, v4, v5e, v5p, v6e), a colon and its mesh of chips, such as v5e:16x16",
        ),
        ("16x16", "write a generation"),
        ("v5e:16x16*2", "write a generation"),
        ("v5lite:2x2", "'v5lite' is unknown; did you mean v5e? There are v3, v4, v5e, v5p, v6e"),
        ("v99:2x2", "'v99' is unknown; there are v3, v4, v5e, v5p, v6e"),
        ("v5e:3x3", "v5e comes in meshes of 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        ("v5e:4x4x4", "v5e comes in meshes of 1x1"),
        ("v3:2x4", "v3 comes in meshes of 2x2, 4x4, 4x8"),
        ("v5p:4x4", "v5p comes in meshes of 1x1x1, 2x2x1, 2x2x2, 2x2x4, 2x4x4 and in multiples of 4x4x4"),
        ("v4:4x4x6", "v4 comes in meshes of"),
        ("v4:0x4x4", "v4 comes in meshes of"),
        ("v4:16x16x24", "such as 4x8x8, up to 4096 chips"),
        ("0xv5e:2x2", "needs at least one slice"),
    ],
)
def test_the_error_for_a_wrong_name_lists_the_valid_ones(name, message):
    with pytest.raises(
        TopologyError, match=rf"^--topology={re.escape(name)}: .*{re.escape(message)}"
    ) as caught:
        topology.parse(name)
    assert "\n" not in str(caught.value)


def test_the_error_without_libtpu_contains_the_pip_command(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TopologyError, match=r"^planning needs the TPU compiler: pip install libtpu$"):
        topology.devices(topology.parse("v5e:2x2"))
