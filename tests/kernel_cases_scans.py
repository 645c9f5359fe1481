"""Cases of the scans, the search and the quantisers, in the form of `kernel_cases`: (label, call, float64 reference, tolerances)."""
import numpy as np
import torch
from arlm_nb.kernels.energy_distance import energy_distance
from arlm_nb.kernels.fm_index_search import fm_build, fm_index_search, fm_next_counts
from arlm_nb.kernels.kv_evict import kv_evict
from arlm_nb.kernels.hmm_forward import hmm_backward, hmm_forward, hmm_log_prob
from arlm_nb.kernels.linear_scan import linear_scan
from arlm_nb.kernels.linear_scan_cuda import naive_cuda
from arlm_nb.kernels.dispatch import on_cuda
from arlm_nb.kernels.concat_reorder import _reference as reorder_reference
from arlm_nb.kernels.concat_reorder import concat_reorder, example
from arlm_nb.kernels.cast_format import cast_format, format_limits
from arlm_nb.kernels.philox import philox4x32
from arlm_nb.kernels.staircase_quantize import staircase_dequantize, staircase_quantize
from arlm_nb.kernels.vq_nearest import vq_nearest
from arlm_nb.kernels.selective_scan import Inputs, literal_scan as literal_selective, selective_scan


def generator(rng): return torch.Generator().manual_seed(int(rng.integers(2**31)))


def flat(*tensors): return torch.cat([x.detach().double().cpu().flatten() for x in tensors])


def literal_scan(q, k, v, g, S):
    "S_t = exp(g_t) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t, a token at a time."
    out = []
    for t in range(q.shape[2]):
        S = (S if g is None else g[:, :, t, None, None].exp() * S) + k[:, :, t, :, None] * v[:, :, t, None]
        out.append((q[:, :, t, :, None] * S).sum(2))
    return torch.stack(out, 2), S


def linear_scan_cases(rng):
    r = generator(rng)
    for B, H, T, dk, dv in [(1, 1, 1, 1, 1), (2, 1, 17, 5, 3), (1, 2, 33, 9, 20), (1, 1, 40, 70, 6), (1, 1, 18, 260, 5), (1, 2, 300, 12, 13), (1, 1, 20, 4, 130)]:
        for dtype, tolerance in [(torch.float64, (1e-9, 1e-9)), (torch.float32, (2e-4, 2e-4)), (torch.bfloat16, (3e-2, 5e-2)), (torch.float16, (4e-3, 8e-3))]:
            q, k, v = (torch.randn(B, H, T, d, generator=r, dtype=torch.float64).div(d**0.5).to(dtype) for d in (dk, dk, dv))
            S, g = torch.randn(B, H, dk, dv, generator=r, dtype=torch.float64), -torch.rand(B, H, T, generator=r, dtype=torch.float64)
            if T > 20: g[..., 7] = -torch.inf
            for decay, start in ((g, S), (None, None)) if T < 300 else ((g, S),):
                leaves = [q, k, v] + ([decay, start] if start is not None else [])
                weights = torch.randn(B, H, T, dv, generator=r, dtype=torch.float64), torch.randn(B, H, dk, dv, generator=r, dtype=torch.float64)

                def run(fn, leaves, weights):
                    leaves = [x.requires_grad_() for x in leaves]
                    o, last = fn(*leaves) if len(leaves) == 5 else fn(*leaves, None, torch.zeros_like(weights[1]) if fn is literal_scan else None)
                    ((o.double() * weights[0]).sum() + (last.double() * weights[1]).sum()).backward()
                    return flat(o, last, *(x.grad.nan_to_num() for x in leaves))  # at -inf the decay has no finite slope

                def call(move, leaves=leaves, weights=weights, dtype=dtype):
                    return run(linear_scan, [move(x.to(dtype)) for x in leaves], [move(w) for w in weights])

                want = run(literal_scan, [x.detach().double().clone() for x in leaves], weights)
                yield f"{B} {H} {T} {dk} {dv} {dtype} {decay is not None}", call, want, tolerance
    q, k, v = (torch.randn(3, 21, d, generator=r) for d in (6, 6, 9))
    g = -torch.rand(3, 21, generator=r)

    def naive(move):
        moved = [move(x) for x in (q, k, v, g)]
        return flat(*(naive_cuda(*moved) if on_cuda(*moved) else (x[0] for x in linear_scan(*(x[None] for x in moved)))))

    yield "naive", naive, flat(*(x[0] for x in literal_scan(*(x[None].double() for x in (q, k, v, g)), torch.zeros(1, 3, 6, 9).double()))), (1e-4, 1e-4)
    bad = v.clone()
    bad[0, 15], bad[1, 20] = torch.nan, torch.inf  # what comes later spoils nothing

    def early(move): return flat(linear_scan(*(move(x[None]) for x in (q, k, bad, g)))[0][:, :, :15])

    yield "not finite", early, flat(literal_scan(*(x[None].double() for x in (q, k, v, g)), torch.zeros(1, 3, 6, 9).double())[0][:, :, :15]), (1e-4, 1e-4)


def selective_scan_cases(rng):
    r = generator(rng)
    normal = lambda *shape: torch.randn(*shape, generator=r, dtype=torch.float64)
    for B, T, D, N in [(1, 1, 1, 1), (2, 19, 5, 3), (1, 33, 20, 16), (1, 20, 3, 40), (2, 17, 9, 128), (1, 18, 70, 7), (1, 300, 40, 4)]:
        for dtype, tolerance in [(torch.float64, (1e-9, 1e-9)), (torch.float32, (5e-4, 5e-4)), (torch.bfloat16, (5e-2, 5e-2)), (torch.float16, (5e-3, 5e-3))]:
            big = [normal(B, T, D), normal(B, T, D) - 1, normal(B, T, N) / N**0.5, normal(B, T, N) / N**0.5, normal(B, T, D)]
            u, delta, b, c, z = (x.to(dtype) for x in big)
            A, skip, bias, h = -normal(D, N).exp(), normal(D), normal(D), normal(B, D, N)
            weights = normal(B, T, D), normal(B, D, N)
            for full in (True, False) if T < 300 else (True,):
                leaves = [u, delta, A, b, c, skip, z, bias, h] if full else [u, delta.abs(), A, b, c]

                def run(fn, leaves, weights, full=full):
                    leaves = [x.requires_grad_() for x in leaves]
                    y, last = fn(*leaves[:8], full, *leaves[8:]) if full else fn(*leaves, None, None, None, full, None)
                    ((y.double() * weights[0]).sum() + (last.double() * weights[1]).sum()).backward()
                    scaled = [x.grad.double() / max(1.0, float(x.grad.abs().max())) for x in leaves]  # sums over all tokens
                    return flat(y, last, *scaled)

                def call(move, leaves=leaves, weights=weights, run=run, dtype=dtype):
                    low = [x.to(dtype) if dtype == torch.float64 or x.dtype != torch.float64 else x.float() for x in leaves]
                    return run(selective_scan, [move(x.detach()) for x in low], [move(w) for w in weights])

                exact = lambda u, delta, A, b, c, skip, z, bias, soft, h: literal_selective(Inputs(u, delta, A, b, c, skip, z, bias, soft), h)
                want = run(exact, [x.detach().double().clone() for x in leaves], weights)
                yield f"{B} {T} {D} {N} {dtype} {full}", call, want, tolerance


def literal_hmm(pi, A, E, ids):
    "Forward and backward recursion of one batch, a sequence and a token at a time."
    out = []
    for x in ids.tolist():
        said = [torch.ones_like(pi) if token < 0 else E[:, token] for token in x]
        alpha, scale, beta = [], [], [torch.ones_like(pi)]
        for t, e in enumerate(said):
            a = e * (pi if t == 0 else alpha[-1] @ A)
            scale.append(a.sum())
            alpha.append(a / scale[-1] if scale[-1] != 0 else a)
        for t in range(len(x) - 1, 0, -1):
            beta.append(A @ (said[t] * beta[-1]) / scale[t] if scale[t] != 0 else torch.zeros_like(pi))
        out += [torch.stack(scale).log().sum()[None], torch.stack(alpha).flatten(), torch.stack(scale), torch.stack(beta[::-1]).flatten()]
    return torch.cat(out)


def hmm_cases(rng):
    r = generator(rng)
    for B, T, H, V in [(1, 1, 1, 1), (3, 7, 2, 5), (8, 5, 33, 4), (9, 4, 64, 9), (19, 6, 65, 300), (2, 3, 200, 7), (2, 2, 520, 3)]:
        pi, A, E = (torch.rand(*s, generator=r, dtype=torch.float64).pow(3) for s in ((H,), (H, H), (H, V)))
        pi, A, E = (x / x.sum(-1, keepdim=True) for x in (pi, A, E))
        ids = torch.randint(V, (B, T), generator=r)
        ids[-1, T // 2] = -1
        if V > 4:
            E[:, 2] = 0
            ids[0, T // 2] = 2  # cannot be said
        for dtype, tolerance in ((torch.float64, (1e-9, 1e-9)), (torch.float32, (2e-4, 1e-5))):

            def call(move, pi=pi, A=A, E=E, ids=ids, dtype=dtype):
                p, a, e, x = (move(z.to(dtype)) if z.is_floating_point() else move(z) for z in (pi, A, E, ids))
                found = hmm_forward(p, a, e, x)
                beta = hmm_backward(a, e, x, found.scale)
                rows = zip(found.log_prob, found.alpha, found.scale, beta)
                return torch.cat([z.reshape(-1) for row in rows for z in row]).double().cpu().clamp(min=-1e30)

            yield f"{B} {T} {H} {V} {dtype}", call, literal_hmm(pi, A, E, ids).clamp(min=-1e30), tolerance
    leaves, ids = [x.requires_grad_() for x in (torch.rand(3, generator=r).double(), torch.rand(3, 3, generator=r).double(), torch.rand(3, 4, generator=r).double())], torch.tensor([[0, 1, -1, 3], [2, 2, 1, 0]])
    exact = torch.autograd.grad(literal_log_prob(*leaves, ids).sum(), leaves)

    def gradient(move):
        moved = [move(x.detach().float()).requires_grad_() for x in leaves]
        return flat(*torch.autograd.grad(hmm_log_prob(*moved, move(ids)).sum(), moved))

    yield "gradient", gradient, flat(*exact), (1e-4, 1e-4)


def literal_log_prob(pi, A, E, ids):
    total = []
    for x in ids.tolist():
        a = pi
        for t, token in enumerate(x): a = (a if t == 0 else a @ A) * (1 if token < 0 else E[:, token])
        total.append(a.sum().log())
    return torch.stack(total)


def literal_search(bwt, pattern, lo, hi):
    "One backward step a token, each count made by looking at all rows."
    for token in pattern:
        if token < 0 or lo >= hi: continue
        lo, hi = ((bwt < token).sum() + (bwt[:end] == token).sum() for end in (lo, hi))
    return lo, hi


def fm_cases(rng):
    for n, V, Q, m in [(1, 1, 1, 1), (447, 2, 3, 4), (448, 3, 65, 2), (449, 17, 300, 3), (2000, 300, 40, 2), (900, 50_000, 9, 1)]:
        bwt = rng.integers(0, V, n)
        if n == 1: bwt[:] = 0
        patterns = rng.integers(0, V, (Q, m))
        patterns[0, 0], patterns[-1, -1] = bwt[0], -1
        starts = np.sort(rng.integers(0, n + 1, (2, Q)), 0)
        want = np.array([literal_search(bwt, p, *s) for p, s in zip(patterns, starts.T)]).T
        index = fm_build(bwt, V)

        def search(move, index=index, patterns=patterns, starts=starts):
            lo, hi = fm_index_search(index._replace(blocks=move(index.blocks), zeros=move(index.zeros), shift=move(index.shift)), move(torch.from_numpy(patterns)),
                                     *(move(torch.from_numpy(s)) for s in starts))
            return torch.stack([torch.where(lo < hi, lo, 0), hi - lo])  # an empty range may lie anywhere

        yield f"{n} {V} {Q} {m}", search, torch.from_numpy(np.stack([np.where(want[0] < want[1], want[0], 0), want[1] - want[0]])), (0, 0)
        few = min(Q, 5)
        counts = np.stack([np.bincount(bwt[a:b], minlength=V) for a, b in starts.T[:few]])

        def following(move, index=index, starts=starts, few=few):
            moved = index._replace(blocks=move(index.blocks), zeros=move(index.zeros), shift=move(index.shift))
            return fm_next_counts(moved, *(move(torch.from_numpy(s[:few])) for s in starts))

        if V < 1000: yield f"next {n} {V}", following, torch.from_numpy(counts), (0, 0)


def literal_staircase(x, bits, group, by):
    "Codes and values of each group, in float32 as the definition says."
    codes, values = [], torch.empty_like(x, dtype=torch.float32)
    for k, b in enumerate(bits):
        part, axis = x[:, k * group:(k + 1) * group].float(), 1 if by == "channel" else 2
        lo, hi = part.amin(axis, keepdim=True), part.amax(axis, keepdim=True)
        s = (hi - lo) / (2**b - 1)
        q = torch.where((s > 0) & s.isfinite(), ((part - lo) / torch.where(s > 0, s, 1)).round().clamp(0, 2**b - 1), 0)
        values[:, k * group:(k + 1) * group] = lo + q * s
        width = -(-x.shape[2] * b // 8)
        packed = torch.zeros(*part.shape[:2], width, dtype=torch.int64)
        for c in range(x.shape[2]): packed[..., c * b // 8] |= q[..., c].long() << (c * b % 8)
        codes.append(packed.flatten(1))
    return torch.cat(codes, 1), values.to(x.dtype)


def staircase_cases(rng):
    r = generator(rng)
    for R, T, d, group in [(1, 1, 1, 32), (3, 33, 5, 8), (2, 64, 64, 32), (1, 50, 530, 7), (2, 9, 3, 1)]:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for by in ("channel", "token"):
                x = (5 * torch.randn(R, T, d, generator=r) + 2).to(dtype)
                x[0, : T // 2, 0] = 3.0  # constant groups
                if R > 2: x[1, 0, 1], x[2, 20, 2], x[2, 9, 3] = torch.nan, torch.inf, -torch.inf
                bits = [(8, 4, 4, 2)[k % 4] for k in range(-(-T // group))]
                codes, values = literal_staircase(x, bits, group, by)

                def call(move, x=x, bits=bits, group=group, by=by):
                    packed = staircase_quantize(move(x), bits, group, by)
                    return flat(packed.codes, staircase_dequantize(packed).float().nan_to_num(nan=-77.0))

                want = torch.cat([codes.double().flatten(), values.double().nan_to_num(nan=-77.0).flatten()])
                yield f"{R} {T} {d} {group} {dtype} {by}", call, want, (1e-6 if dtype == torch.float32 else 1e-2, 1e-6)


def literal_cast(x, e, m, rounding, saturate, subnormals, finite_only, noise):
    "The cast in float64, from the definition."
    most, least = format_limits(e, m, finite_only)
    x = x.double()
    size = x.abs()
    exponent = torch.frexp(size)[1].double() - 1
    exponent = exponent.clamp(min=float(2 - 2 ** (e - 1)) if subnormals else -126.0)
    quantum = torch.ldexp(torch.ones_like(size), (exponent - m).int())
    units = size / quantum
    if rounding == "truncate": units = units.floor()
    elif rounding == "nearest": units = units.round()
    else:
        dropped = (23 - m + (exponent - (torch.frexp(size)[1].double() - 1).clamp(min=-126.0))).clamp(max=31)  # bits of the mantissa that go
        units = (units + (noise.double() % 2**dropped) / 2**dropped).floor()
    y = units * quantum
    y = torch.where(y > most, most if saturate else torch.nan if finite_only else torch.inf, y)
    if not subnormals: y = torch.where(y < least, 0, y)
    y = torch.where(x.isinf(), (most if saturate else torch.nan) if finite_only else torch.inf, y)
    return torch.where(x.isnan(), x, y.copysign(x))


def cast_cases(rng):
    r = generator(rng)
    for n in (1, 6, 1030):
        x = torch.randn(n, generator=r) * 2.0 ** torch.randint(-30, 12, (n,), generator=r)
        if n > 1000: x[:12] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 448.0, 464.0, 57344.0, 3e38, 1e-40, 2.0**-149, 2.0**-126])
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for e, m, finite_only in [(8, 7, False), (8, 23, False), (4, 3, True), (5, 2, False), (2, 0, False), (3, 0, True)]:
                for rounding in ("truncate", "nearest", "stochastic"):
                    for saturate, subnormals in ((True, False), (False, True)):
                        low, seed = x.to(dtype), 12345678901234567
                        pair = torch.arange(n) // 2
                        words = philox4x32((pair, pair * 0, pair * 0, pair * 0), (seed & 0xFFFFFFFF, seed >> 32))
                        noise = torch.where(torch.arange(n) % 2 == 0, words[0], words[1])
                        want = literal_cast(low.float(), e, m, rounding, saturate, subnormals, finite_only, noise).to(dtype).double()

                        def call(move, low=low, options=(e, m, rounding, saturate, subnormals, finite_only, seed)):
                            return cast_format(move(low), *options).float().cpu().double().nan_to_num(nan=-77.0, posinf=1e300, neginf=-1e300)

                        label = f"{n} {dtype} {e} {m} {finite_only} {rounding} {saturate} {subnormals}"
                        yield label, call, want.nan_to_num(nan=-77.0, posinf=1e300, neginf=-1e300), (0, 0)


def evict_cases(rng):
    r = generator(rng)
    for B, H, M, d, n in [(1, 1, 1, 1, 1), (1, 3, 9, 5, 7), (2, 5, 40, 33, 40), (1, 2, 300, 64, 257)]:
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-4), (torch.float16, 1e-4)):
            for recent_from, sinks, filtered in ((n, 0, True), (n - n // 4, 2, True), (n - 1, 0, False), (0, 0, True)):
                K, V = torch.randn(2, B, H, M, d, generator=r).to(dtype)
                at = torch.rand(B, H, M, generator=r).argsort(-1)
                score, u = torch.randn(B, H, M, generator=r).mul(3).round(), torch.randn(H, d, generator=r) if filtered else None
                if M > 8: score[..., 3] = torch.nan
                wK, wV, wat, ws = K.double(), V.double(), at.clone(), score.double()
                slots = torch.zeros(B, H)
                for b in range(B):
                    for h in range(H):
                        if filtered: ws[b, h, n - 1] = (wK[b, h, n - 1] * u[h].double()).sum()
                        free = [i for i in range(n) if sinks <= wat[b, h, i] < recent_from]
                        low = min(free, key=lambda i: -1e30 if ws[b, h, i].isnan() else float(ws[b, h, i])) if free else n - 1
                        for t in (wK, wV, wat, ws): t[b, h, low] = t[b, h, n - 1]
                        slots[b, h] = low

                def call(move, K=K, V=V, at=at, score=score, u=u, n=n, recent_from=recent_from, sinks=sinks):
                    x = [move(t) for t in (K, V, at, score)]
                    slot = kv_evict(*x, None if u is None else move(u), n, recent_from, sinks)
                    return flat(*x, slot).nan_to_num(nan=-77.0)

                want = flat(wK, wV, wat, ws, slots).nan_to_num(nan=-77.0)
                yield f"{B} {H} {M} {d} {n} {dtype} {recent_from} {sinks} {filtered}", call, want, (tolerance, tolerance)


def reorder_cases(rng):
    for L, B, H, S, C, R, d, half in [(1, 1, 1, 1, 1, 0, 1, 0), (2, 3, 2, 9, 5, 4, 8, 4), (1, 2, 4, 16, 0, 7, 6, 3), (3, 1, 2, 12, 12, 3, 16, 4), (2, 2, 1, 40, 30, 9, 32, 16)]:
        for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)):
            given = example(L, B, H, S, C, R, d, half, dtype, seed=int(rng.integers(2**31)))

            def call(move, given=given): return torch.stack(concat_reorder(*(None if t is None else move(t) for t in given))).float()

            yield f"{L} {B} {H} {S} {C} {R} {d} {half} {dtype}", call, reorder_reference(*given), (tolerance, tolerance)


def nearest_cases(rng):
    r = generator(rng)
    for n, K, d in [(1, 1, 1), (70, 130, 20), (64, 64, 16), (3, 300, 5), (130, 65, 33)]:
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 1e-4), (torch.float16, 1e-4)):
            z, codes = torch.randn(n, d, generator=r).to(dtype), torch.randn(K, d, generator=r)
            codes[K // 2] = codes[0]  # of equal codes the first
            every = (z.double()[:, None] - codes.double()[None]).square().sum(-1)

            def call(move, z=z, codes=codes, every=every):
                ids, distance = vq_nearest(move(z), move(codes))
                first = (ids.cpu() != len(codes) // 2) | (len(codes) == 1)
                return flat(distance, every.gather(1, ids.cpu()[:, None]), first)  # at a near tie either code is right

            yield f"{n} {K} {d} {dtype}", call, flat(every.min(1).values, every.min(1).values, torch.ones(n)), (tolerance, tolerance)


def energy_cases(rng):
    r = generator(rng)
    for B, N, M, l in [(1, 2, 1, 1), (3, 8, 100, 16), (2, 9, 33, 40), (4, 17, 5, 3)]:
        x, y = torch.randn(B, N, l, generator=r, dtype=torch.float64), torch.randn(B, M, l, generator=r, dtype=torch.float64)
        x[0, 1], y[0, 0] = x[0, 0], x[0, 0]  # distances of zero
        for dtype, tolerance in ((torch.float32, 2e-4), (torch.float64, 1e-9)):
            for alpha in (0.5, 1.0, 2.0):
                given = [t.to(dtype) for t in (x, y)]

                def call(move, given=given, alpha=alpha): return energy_with_gradients(energy_distance, *(move(t) for t in given), alpha)

                yield f"{B} {N} {M} {l} {alpha} {dtype}", call, energy_with_gradients(plain_energy, *(t.double() for t in given), alpha), (tolerance, tolerance)


def energy_with_gradients(fn, x, y, alpha):
    x, y = x.requires_grad_(), y.requires_grad_()
    value = fn(x, y, alpha)
    return flat(value.detach(), *torch.autograd.grad(value.sum(), (x, y)))


def plain_energy(x, y, alpha):
    def d(a, b):
        s = (a[:, :, None] - b[:, None]).square().sum(-1)
        return torch.where(s > 0, torch.where(s > 0, s, 1.0) ** (alpha / 2), 0.0)
    N = x.shape[1]
    return 2 * d(x, y).mean((1, 2)) - d(x, x).sum((1, 2)) / (N * (N - 1))


MORE_CASES = {
    "energy_distance": energy_cases,
    "vq_nearest": nearest_cases,
    "concat_reorder": reorder_cases,
    "kv_evict": evict_cases,
    "linear_scan": linear_scan_cases,
    "selective_scan": selective_scan_cases,
    "hmm_forward": hmm_cases,
    "fm_index_search": fm_cases,
    "staircase_quantize": staircase_cases,
    "cast_format": cast_cases,
}
