"""Parsing compiled programs: real ones for eight CPU devices, and the TPU compiler's syntax."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel.sharding import replicated
from big_ssl.planning import hlo

MESH_SIZES = dict(data=4, fsdp=2, tensor=1)


@pytest.fixture(scope="module")
def mesh():
    return mesh_lib.make_mesh(MESH_SIZES)


def _sharded(mesh, shape, *axes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))


def _compile(function, *arguments, out=None):
    text = jax.jit(function, out_shardings=out).lower(*arguments).compile().as_text()
    return hlo.parse(text)


def _bytes(program, devices=8):
    actual = hlo.collective_bytes(hlo.collectives(program, devices))
    return {kind: size for kind, size in actual.items() if size}


def _whole(mesh):
    return replicated(mesh)


@pytest.mark.smoke
def test_an_all_gathers_payload_is_its_output(mesh):
    x = _sharded(mesh, (64, 16), ("data", "fsdp"))
    assert _bytes(_compile(lambda x: x * 2, x, out=_whole(mesh))) == {"all-gather": 64 * 16 * 4}


def test_an_all_reduces_payload_is_its_operand(mesh):
    x = _sharded(mesh, (64, 16), "data")
    program = _compile(lambda x: x.sum(0), x, out=_whole(mesh))
    assert _bytes(program) == {"all-reduce": 16 * 4}
    (actual,) = hlo.collectives(program, 8)
    assert actual == hlo.Collective("all-reduce", 64, 4, 1, False, False)


def test_a_collective_permute_and_an_all_to_all(mesh):
    specs = dict(in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"))
    turn = [(i, (i + 1) % 4) for i in range(4)]

    def exchanged(x):
        return jax.lax.all_to_all(jax.lax.ppermute(x, "data", turn), "data", 1, 1, tiled=True)

    program = _compile(jax.shard_map(exchanged, mesh=mesh, **specs), _sharded(mesh, (64, 16), "data"))
    assert _bytes(program) == {"collective-permute": 16 * 16 * 4, "all-to-all": 16 * 16 * 4}


def _layers(x, kernels):
    def layer(x, kernel):
        return jnp.tanh(x @ kernel), None

    return jax.lax.scan(layer, x, kernels)[0]


def test_a_scanned_layer_counts_once_per_iteration(mesh):
    x, kernels = _sharded(mesh, (32, 16), "data"), _sharded(mesh, (5, 16, 16), None, "fsdp")
    program = _compile(_layers, x, kernels, out=NamedSharding(mesh, PartitionSpec("data")))
    assert program.unknown_loops == 0
    assert hlo.flops(program) == 5 * 2 * 8 * 16 * 16 // 2  # an eighth of the rows, half of the contraction
    summed = hlo.Collective("all-reduce", 8 * 16 * 4, 2, 5, False, False)
    gathered = hlo.Collective("all-gather", 8 * 16 * 4, 2, 1, False, False)
    assert list(hlo.collectives(program, 8)) == [summed, gathered]


# Of two sizes: the cache of compiled programs does not tell names apart.
@pytest.mark.parametrize(("scope", "products", "size"), [("fallback", 1, 32), ("other", 3, 48)])
def test_branches_count_unless_they_are_a_fallback(scope, products, size):
    rare = jax.named_scope(scope)(lambda x: jnp.sin(x) @ jnp.cos(x) @ x)
    program = _compile(lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, rare, x), jnp.ones((size, size)))
    assert hlo.flops(program) == products * 2 * size**3


def test_scanned_and_unrolled_layers_have_equal_flops():
    x, kernels = jnp.ones((32, 16)), jnp.ones((5, 16, 16))

    def unrolled(x, kernels):
        for kernel in kernels:
            x = jnp.tanh(x @ kernel)
        return x

    counts = [hlo.flops(_compile(jax.grad(lambda *a, f=f: f(*a).sum()), x, kernels))
              for f in (_layers, unrolled)]  # fmt: skip
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(("stride", "groups", "dilation"), [(1, 1, 1), (2, 1, 1), (1, 4, 1), (1, 1, 2)])
def test_convolution_flops_equal_the_compilers_count(stride, groups, dilation):
    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), ((1, 1), (1, 1)), lhs_dilation=(dilation, dilation),
            feature_group_count=groups, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    compiled = jax.jit(conv).lower(jnp.ones((2, 9, 9, 8)), jnp.ones((3, 3, 8 // groups, 8))).compile()
    assert hlo.flops(hlo.parse(compiled.as_text())) == compiled.cost_analysis()["flops"]


def test_bytes_of_shapes():
    assert hlo.array_bytes("bf16[3,4]{1,0:T(8,128)(2,1)S(1)}") == 24
    assert hlo.array_bytes("(f32[2]{0}, /*index=1*/(s32[], pred[5]{0}), token[])") == 8 + 4 + 5
    assert hlo.array_bytes("f32[]") == 4


# Excerpts of programs by libtpu 0.0.52: a loop without an annotated trip count, a collective spread over
# fusions, a fused reduce-scatter, a matmul as a convolution, a collective between slices.
TPU = """HloModule jit_step, is_scheduled=true

%product (p0: bf16[128,64], p1: bf16[64,32]) -> bf16[128,32] {
  %p0 = bf16[128,64]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[128,32]{1,0:T(8,128)(2,1)} convolution(%p0, %p1), dim_labels=bf_io->bf
}

%start (q0: bf16[64,8]) -> (bf16[64,8], bf16[64,32]) {
  %q0 = bf16[64,8]{1,0} parameter(0)
  %all-gather.1 = bf16[64,32]{1,0} all-gather(%q0), channel_id=21, replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_1'}, dimensions={1}, backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
  ROOT %custom-call.1 = (bf16[64,8]{1,0}, bf16[64,32]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%middle (r0: bf16[64,8], r1: bf16[128,64]) -> bf16[64,32] {
  %r0 = bf16[64,8]{1,0} parameter(0)
  %r1 = bf16[128,64]{1,0} parameter(1)
  ROOT %all-gather.2 = bf16[64,32]{1,0} all-gather(%r0), channel_id=21, replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_1'}, dimensions={1}, backend_config={"async_collective_fusion_config":{"flag_start":"2"},"estimated_cycles":"999"}
}

%all-reduce-scatter.1 (s0: f32[32,16]) -> f32[32,4] {
  %s0 = f32[32,16]{1,0} parameter(0)
  %all-reduce.1 = f32[32,16]{1,0} all-reduce(%s0), channel_id=11, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %zero = u32[] constant(0)
  ROOT %dynamic-slice.1 = f32[32,4]{1,0} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={32,4}
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (loop: (s32[], bf16[128,64], bf16[64,32])) -> (s32[], bf16[128,64], bf16[64,32]) {
  %loop = (s32[]{:T(128)}, bf16[128,64]{1,0}, /*index=2*/bf16[64,32]{1,0}) parameter(0)
  %x = bf16[128,64]{1,0} get-tuple-element(%loop), index=1
  %w = bf16[64,32]{1,0} get-tuple-element(%loop), index=2
  %fusion.1 = bf16[128,32]{1,0} fusion(%x, %w), kind=kOutput, calls=%product, backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %next = (s32[]{:T(128)}, bf16[128,64]{1,0}, bf16[64,32]{1,0}) tuple(%loop, %x, %w)
}

%condition (state: (s32[], bf16[128,64], bf16[64,32])) -> pred[] {
  %limit = s32[]{:T(128)} constant(6)
  %state = (s32[]{:T(128)}, bf16[128,64]{1,0}, bf16[64,32]{1,0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %lt = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

ENTRY %main (x: bf16[128,64], w: bf16[64,8], g: f32[32,16]) -> f32[32,4] {
  %x.1 = bf16[128,64]{1,0} parameter(0)
  %w.1 = bf16[64,8]{1,0} parameter(1)
  %g = f32[32,16]{1,0} parameter(2)
  %one = s32[]{:T(128)} constant(1)
  %first = s32[]{:T(128)} copy(%one)
  %started = (bf16[64,8]{1,0}, bf16[64,32]{1,0}) fusion(%w.1), kind=kCustom, calls=%start
  %fusion.2 = bf16[64,32]{1,0} fusion(%w.1, %x.1), kind=kOutput, calls=%middle, backend_config={"estimated_cycles":"30"}
  %all = (s32[]{:T(128)}, bf16[128,64]{1,0}, bf16[64,32]{1,0}) tuple(%first, %x.1, %fusion.2)
  %while.1 = (s32[]{:T(128)}, bf16[128,64]{1,0}, bf16[64,32]{1,0}) while(%all), condition=%condition, body=%body
  %token = token[] after-all()
  %send.1 = (f32[32,16]{1,0}, u32[], token[]) send(%g, %token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:15}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %fusion.3 = f32[32,4]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1, backend_config={"estimated_cycles":"7"}
}
"""  # noqa: E501


def test_the_tpu_compilers_syntax():
    program = hlo.parse(TPU)
    assert program.unknown_loops == 0
    assert program.runs["body"] == 5  # from 1 up to 6
    assert hlo.estimated_cycles(program) == 5 * 100 + 30 + 7  # a fusion's caller includes its cycles
    assert hlo.flops(program) == 5 * 2 * 128 * 64 * 32
    assert sorted(hlo.collectives(program, 16)) == [
        hlo.Collective("all-gather", 64 * 32 * 2, 4, 1, hidden=True, dcn=False),
        hlo.Collective("all-reduce", 32 * 16 * 4, 2, 1, hidden=True, dcn=True),
        hlo.Collective("reduce-scatter", 32 * 16 * 4, 4, 1, hidden=False, dcn=False),
    ]


def test_a_loop_of_unknown_length_is_reported_and_counted_once():
    program = hlo.parse(TPU.replace("direction=LT", "direction=NE"))
    assert (program.unknown_loops, program.runs["body"]) == (1, 1)


def test_an_operation_without_an_estimate_is_named_and_left_out():
    """The compiler writes the largest int64 for it."""
    text = TPU.replace('"estimated_cycles":"30"', '"estimated_cycles":"9223372036854775807"')
    program = hlo.parse(text)
    assert hlo.unestimated(program) == ["fusion.2"]
    assert hlo.estimated_cycles(program) == 5 * 100 + 7
    assert hlo.unestimated(hlo.parse(TPU)) == []


KERNELS = """%gathered (p: s32[8], table: f32[64,32]) -> f32[8,32] {
  %p = s32[8]{0} parameter(0)
  %table = f32[64,32]{1,0} parameter(1)
  ROOT %gather = f32[8,32]{1,0} gather(%table, %p), offset_dims={1}
}

ENTRY %main (ids: s32[8], table: f32[64,32]) -> f32[8,32] {
  %ids = s32[8]{0} parameter(0)
  %table.1 = f32[64,32]{1,0} parameter(1)
  %custom-call = f32[8,32]{1,0} custom-call(), custom_call_target="AllocateBuffer", backend_config={"flag_configs":[]}
  %gather_fusion = f32[8,32]{1,0} fusion(%ids, %table.1), kind=kCustom, calls=%gathered, backend_config={"flag_configs":[]}
  %attention.1 = f32[8,32]{1,0} custom-call(%gather_fusion), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 128}"
}}, backend_config={"custom_call_config":{"body":"..."}}
  %bitcast = f32[8,32]{1,0} bitcast(%attention.1)
  ROOT %copy = f32[8,32]{0,1} copy(%bitcast), frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 128}"
}}, backend_config={"estimated_cycles":"40"}
}
"""  # noqa: E501


def test_kernels_and_gathers_without_a_word_of_their_cycles_are_named_too():
    """Of them the compiler writes nothing; attributes with line breaks belong to one operation."""
    program = hlo.parse(KERNELS)
    assert hlo.unestimated(program) == ["gather_fusion", "attention.1"]
    assert hlo.estimated_cycles(program) == 40


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups=[4,2]<=[8]", 2),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", 4),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", 4),
        ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", 8),
        ("replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}", 4),
        ("replica_groups={}", 8),
    ],
)
def test_group_sizes(groups, size):
    spelled = TPU.replace("replica_groups={{0,1,2,3},{4,5,6,7}}", groups)
    (actual,) = (c for c in hlo.collectives(hlo.parse(spelled), 8) if c.kind == "reduce-scatter")
    assert actual.group == size


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("{{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'b','a'}", [[0, 2, 1, 3]]),
    ],
)
def test_replica_groups(groups, expected):
    actual = hlo.replica_groups(f"channel_id=1, replica_groups={groups}, dimensions={{0}}", 4)
    assert actual.tolist() == expected
