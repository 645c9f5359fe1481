"The host shim finds what it promises to find: each planted fault must be caught, and the sound version of the same kernel must pass."
import numpy as np
import pytest
import torch
from arlm_nb.kernels.dispatch import KERNELS, Kernel, host_launcher
from tests.cuda_host.shim import GXX, HostError, HostLauncher

pytestmark = pytest.mark.skipif(GXX is None, reason="the host shim needs g++")


BODIES: dict[tuple, str] = {}  # (C type, body) -> entry; all bodies of this file are compiled in one go
TYPES = {torch.float32: "float", torch.int32: "int", torch.float64: "double", torch.int64: "i64"}
HELPERS = "__device__ float total(float* s, int n) { float t = 0; for (int i = 0; i < n; ++i) t += s[i]; return t; }\n"
_kernel = []


def planted(body, dtype=torch.float32):
    "Register a body of `extern C void entry(T* x, int n)`."
    BODIES.setdefault((TYPES[dtype], body), f"k{len(BODIES)}")
    return body


def run(body, *, block=64, grid=1, n=64, shared=0, schedules=(0,), dtype=torch.float32):
    "Run a registered body on an array of n numbers 0, 1, 2, …"
    if not _kernel:
        source = HELPERS + "".join(
            f'extern "C" __global__ void {entry}({c}* x, int n) {{ {body} }}\n' for (c, body), entry in BODIES.items()
        )
        _kernel.append(Kernel("planted", source, tuple(BODIES.values()), cpu=None, cuda=None))
        del KERNELS["planted"]
    x = torch.arange(n, dtype=dtype)
    with host_launcher(HostLauncher(schedules)):
        _kernel[0].launch(BODIES[TYPES[dtype], body], (grid,), (block,), x, np.int32(n), shared=shared)
    return x


REVERSE = "__shared__ float s[64]; s[threadIdx.x] = x[threadIdx.x]; %s x[threadIdx.x] = s[63 - threadIdx.x];"
SOUND, RACY = planted(REVERSE % "__syncthreads();"), planted(REVERSE % "")

@pytest.mark.parametrize("schedule", [0, 1, 2, 99])
def test_barrier_and_shared(schedule):
    assert torch.equal(run(SOUND, schedules=(schedule,)), torch.arange(63.0, -1, -1))

@pytest.mark.parametrize("schedule", [0, 1])
def test_missing_barrier_is_seen(schedule):  # shared memory starts as NaN, so what was not yet written shows
    assert not torch.equal(run(RACY, schedules=(schedule,)), torch.arange(63.0, -1, -1))

FAULTS = [
    ("if (threadIdx.x < 40) __syncthreads();", "ended without reaching it"),
    ("if (threadIdx.x == 3) return;\n __syncthreads();", "ended without reaching it"),
    ("if (threadIdx.x < 32) { __syncthreads(); }\nelse { __syncthreads(); }", "waits at line"),
    ("if (threadIdx.x < 32) __syncthreads(); else if (threadIdx.x == 33) __syncwarp();", "has ended"),
    ("if (threadIdx.x % 2) __shfl_sync(0xffffffffu, 1.0f, 0);", "has ended"),
    ("if (threadIdx.x % 2) __shfl_sync(0xffffffffu, 1.0f, 0);\nelse __shfl_sync(0xffffffffu, 1.0f, 0);", "is at line"),
    ("__shfl_sync(0x0000ffffu, 1.0f, 0);", "not in its own mask"),
    ("if (threadIdx.x % 32 < 16) x[threadIdx.x] = __shfl_sync(0x0000ffffu, x[threadIdx.x], 20);", "not in mask"),
    ("if (threadIdx.x < 32) __syncthreads();\nelse __syncwarp(), __syncthreads();", "waits at line"),
    ("__shared__ float s[64]; s[threadIdx.x + 1] = 0.0f;", "shared array s: index 64"),
    ("__shared__ float s[64]; x[0] = s[int(threadIdx.x) - 1];", "shared array s: index -1"),
    ("__shared__ float s[4][16]; s[threadIdx.x / 16][threadIdx.x % 16 + 1] = 0.0f;", "index 16"),
    ("__shared__ float s[60]; float* p = s; if (threadIdx.x == 0) p[61] = 1.0f;", "past its end"),
    ("extern __shared__ float s[]; s[threadIdx.x] = 0.0f;", "dynamic shared array s: index 32"),
    ("extern __shared__ float s[]; float* p = s; if (threadIdx.x == 0) p[33] = 0.0f;", "past its end"),
    ("x[threadIdx.x + 4096] = 0.0f;", "outside every tensor"),
    ("x[threadIdx.x + 500000] = 0.0f;", "outside every tensor"),
    ("x[int(threadIdx.x) - 500000] = 0.0f;", "outside every tensor"),
    ("x[n + 1] = 0.0f;", "past the end of the tensor"),
    ("if (threadIdx.x == 0) x[0] = float(1 / (n - n));", "trapped"),
]
for body, _ in FAULTS: planted(body)

@pytest.mark.parametrize("body, words", FAULTS)
def test_planted_fault_is_caught(body, words):
    with pytest.raises(HostError, match=words): run(body, shared=128, n=61 if "n + 1" in body else 64)

FAR = planted("__shared__ float s[4]; if (blockIdx.x == 1 && threadIdx.x == 5) s[7] = 1.0f;")

def test_message_names_the_thread():
    with pytest.raises(HostError, match=r"block \(1, 0, 0\), thread 5"): run(FAR, grid=2)

WARP = planted("__syncwarp();")

def test_a_mask_beyond_the_block():
    with pytest.raises(HostError, match="the block has 40 threads"): run(WARP, block=40)

def test_run_after_a_fault():
    with pytest.raises(HostError): run(FAULTS[0][0])
    assert torch.equal(run(SOUND), torch.arange(63.0, -1, -1))

def test_arguments_are_checked():
    kernel = Kernel("planted", 'extern "C" __global__ void k(float* x, i64 n, float a) {}', ("k",), cpu=None, cuda=None)
    del KERNELS["planted"]
    x = torch.zeros(4)
    with host_launcher(HostLauncher()):
        for args, words in [
            ((x, np.int32(4), np.float32(1)), "8 bytes"),
            ((x.double(), np.int64(4), np.float32(1)), "4-byte floats"),
            ((x.int(), np.int64(4), np.float32(1)), "floats"),
            ((x, np.int64(4), np.int32(1)), "floating point"),
            ((x, np.int64(4)), "takes 3"),
            ((x, x, np.float32(1)), "is a number"),
        ]:
            with pytest.raises(HostError, match=words): kernel.launch("k", (1,), (1,), *args)
        kernel.launch("k", (1,), (1,), x, np.int64(4), np.float32(1))

LANE = "int i = threadIdx.x, lane = i % 32;"

WARPS = [
    ("x[i] = __shfl_xor_sync(0xffffffffu, x[i], 5);", lambda i: i ^ 5),
    ("x[i] = __shfl_up_sync(0xffffffffu, x[i], 3);", lambda i: np.where(i % 32 >= 3, i - 3, i)),
    ("x[i] = __shfl_down_sync(0xffffffffu, x[i], 3);", lambda i: np.where(i % 32 < 29, i + 3, i)),
    ("x[i] = __shfl_down_sync(0xffffffffu, x[i], 3, 8);", lambda i: np.where(i % 8 < 5, i + 3, i)),
    ("x[i] = __shfl_sync(0xffffffffu, x[i], 7);", lambda i: i // 32 * 32 + 7),
    ("x[i] = __shfl_sync(0xffffffffu, x[i], 9, 8);", lambda i: i // 8 * 8 + 1),
    ("x[i] = __popc(__ballot_sync(0xffffffffu, lane < 10));", lambda i: i * 0 + 10),
    ("x[i] = __any_sync(0xffffffffu, i == 40) + 2 * __all_sync(0xffffffffu, i < 32);", lambda i: np.where(i < 32, 2, 1)),
    ("x[i] = __popc(__match_any_sync(0xffffffffu, i % 4));", lambda i: i * 0 + 8),
    ("x[i] = __syncthreads_count(i < 5) + 100 * __syncthreads_or(i == 3);", lambda i: i * 0 + 105),
    ("if (lane < 4) x[i] = __shfl_sync(0xfu, x[i], 2);", lambda i: np.where(i % 32 < 4, i // 32 * 32 + 2, i)),
    ("x[i] = __float_as_int(1.0f) >> 23;", lambda i: i * 0 + 127),
    ("x[i] = __umulhi(0x80000000u, i) + __ffs(8) + __clz(1);", lambda i: i // 2 + 4 + 31),
]
WARPS = [(planted(LANE + body, torch.int32), expected) for body, expected in WARPS]

@pytest.mark.parametrize("body, expected", WARPS)
@pytest.mark.parametrize("schedule", [0, 1, 5])
def test_warp_operations(body, expected, schedule):
    out = run(body, dtype=torch.int32, schedules=(schedule,))
    assert np.array_equal(out.numpy(), expected(np.arange(64)))

ATOMICS = "if (threadIdx.x < n) atomicAdd(x, 2); atomicMax(x + 1, threadIdx.x); atomicMin(x + 2, 1);"
for dtype in TYPES: planted(ATOMICS, dtype)

@pytest.mark.parametrize("dtype", list(TYPES))
def test_atomics(dtype):
    out = run(ATOMICS, grid=3, dtype=dtype, schedules=(4,))
    assert out[0] == 2 * 64 * 3 and out[1] == 63 and out[2] == 1

SWAP = planted("for (;;) { int old = x[0]; if (atomicCAS(x, old, old + 1) == old) break; }", torch.int32)

def test_compare_and_swap_loop():
    assert run(SWAP, dtype=torch.int32, grid=2)[0] == 128

TOTAL = planted("__shared__ float s[64]; __shared__ float all; s[threadIdx.x] = x[threadIdx.x]; __syncthreads();"
                " if (threadIdx.x == 0) all = total(s, 64); __syncthreads(); x[threadIdx.x] = all;")

def test_shared_scalar_pointer_and_helper():
    assert (run(TOTAL) == 63 * 32).all()

def test_grid_and_block_shapes():
    kernel = Kernel(
        "planted",
        'extern "C" __global__ void k(int* x) { int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);'
        " int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z); x[b * 24 + t] = b * 24 + t; }",
        ("k",),
        cpu=None,
        cuda=None,
    )
    del KERNELS["planted"]
    x = torch.zeros(24 * 30, dtype=torch.int32)
    with host_launcher(HostLauncher()): kernel.launch("k", (2, 3, 5), (4, 3, 2), x)
    assert torch.equal(x, torch.arange(720, dtype=torch.int32))

def test_half_widens_exactly():
    kernel = Kernel(
        "planted",
        'extern "C" __global__ void k(const f16* x, float* y, int n) { for (int i = 0; i < n; ++i) y[i] = widen(x[i]); }',
        ("k",),
        cpu=None,
        cuda=None,
    )
    del KERNELS["planted"]
    bits = torch.arange(-32768, 32768).to(torch.int16)
    x, y = bits.view(torch.float16), torch.zeros(65536)
    with host_launcher(HostLauncher()): kernel.launch("k", (1,), (1,), x, y, np.int32(65536))
    torch.testing.assert_close(y, x.float(), rtol=0, atol=0, equal_nan=True)
