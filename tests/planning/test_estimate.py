"""The estimated step time against the formulas, by hand."""

import pytest

from big_ssl.parallel import hardware
from big_ssl.planning import estimate, hlo, topology

V5E = hardware.chip("TPU v5 lite")
POD, PART = topology.parse("v5e:16x16"), topology.parse("v5e:4x4")


def _collective(kind="all-gather", payload=1e9, group=16, runs=1, hidden=False, dcn=False):
    return hlo.Collective(kind, payload, group, runs, hidden, dcn)


@pytest.mark.parametrize(
    ("kind", "moved"),
    [
        ("all-gather", 15 / 16),
        ("reduce-scatter", 15 / 16),
        ("all-reduce", 30 / 16),
        ("all-to-all", 4.0),
        ("collective-permute", 1.0),
    ],
)
def test_bytes_moved_around_a_ring_by_kind(kind, moved):
    seconds = estimate.collective_seconds(_collective(kind), V5E, POD)
    assert seconds == pytest.approx(moved * 1e9 / (2 * 45e9))  # in both directions


@pytest.mark.parametrize(
    ("name", "group", "links"),
    [
        ("v5e:16x16", 16, 2),  # one ring
        ("v5e:16x16", 256, 4),  # rings along both axes
        ("v5e:16x16", 4, 1),  # a part of an axis is a line
        ("v5e:4x4", 4, 1),  # and so is a short axis
        ("v5e:4x4", 16, 2),
        ("v5p:4x4x4", 4, 2),  # three-dimensional slices wrap from four on
        ("v5p:4x4x4", 64, 6),
        ("v3:16x16", 2, 1),  # two cores of one chip
        ("v3:16x16", 32, 2),
    ],
)
def test_the_number_of_links_in_use(name, group, links):
    chips = topology.parse(name)
    kinds = {"v5e": "TPU v5 lite", "v5p": "TPU v5", "v3": "TPU v3"}
    chip = hardware.chip(kinds[chips.generation])
    seconds = estimate.collective_seconds(_collective("collective-permute", group=group), chip, chips)
    assert 1e9 / (seconds * chip.ici_link) == pytest.approx(links)


def test_chips_share_the_hosts_network_between_slices():
    seconds = estimate.collective_seconds(_collective("all-reduce", group=2, dcn=True), V5E, POD)
    assert seconds == pytest.approx(2 * 0.5 * 1e9 / (25e9 / 4))


def _program(cycles):
    text = (
        "ENTRY %main (x: f32[]) -> f32[] {\n"
        f'  ROOT %x = f32[] parameter(0), backend_config={{"estimated_cycles":"{cycles}"}}\n}}\n'
    )
    return hlo.parse(text)


def test_hidden_collectives_cost_only_the_time_beyond_computation():
    second = int(V5E.clock)
    exposed = _collective("collective-permute", payload=45e9, group=4)
    hidden = exposed._replace(hidden=True)

    def seconds(collectives):
        return estimate.step_seconds(_program(second), collectives, V5E, PART)

    assert seconds([]) == pytest.approx(1)
    assert seconds([hidden]) == pytest.approx(1)
    assert seconds([hidden, hidden]) == pytest.approx(2)
    assert seconds([exposed]) == pytest.approx(2)
    assert seconds([hidden, exposed._replace(runs=3)]) == pytest.approx(4)


def test_a_program_without_cycles_has_no_time():
    assert estimate.step_seconds(_program(0), [], V5E, PART) is None


def test_mfu():
    assert estimate.mfu(197e12 * 4 * 0.4, 1.0, 4, V5E) == pytest.approx(0.4)
