"""What every kernel must compute: for each name of the registry, cases (label, call, reference, tolerances).

`call(move)` runs the public function on tensors put where `move` puts them; `reference` is the same in float64, written plainly. The CPU path, the
host shim and a GPU are all held to the same cases.
"""
import numpy as np
import torch
from arlm_nb.kernels.debruijn import debruijn_pull, debruijn_push
from arlm_nb.kernels.k_seq import _select_reference, chain_verify, k_seq_select
from arlm_nb.kernels.keyed_align import keyed_align
from arlm_nb.kernels.keyed_sample import _reference as sample_reference
from arlm_nb.kernels.keyed_sample import _sample, keyed_sample
from arlm_nb.kernels.kl_to_teacher import kl_to_teacher
from arlm_nb.kernels.levenshtein_align import levenshtein_align
from arlm_nb.kernels.masked_confidence import _reference as confidence_reference
from arlm_nb.kernels.masked_confidence import masked_confidence
from arlm_nb.kernels.masked_log_softmax import _masked, masked_log_softmax
from arlm_nb.kernels.masked_log_softmax import _reference as log_softmax_reference
from arlm_nb.kernels.philox import philox4x32, philox_uniform, uniform_reference
from arlm_nb.kernels.spin import spin
from tests.kernel_cases_scans import MORE_CASES


def literal_align(C, k, gamma=None):
    "The definition, by the textbook dynamic programme for each block and offset in float64."
    C, best = np.asarray(C, float), (np.inf, 0, 0)
    m, n = C.shape
    for a in range(m - k + 1):
        for j in range(n):
            c = C[a:a + k][:, (j + np.arange(k)) % n]
            if gamma is None: d = c.trace()
            else:
                D = np.add.outer(np.arange(k + 1), np.arange(k + 1)) * float(gamma)
                for i in range(k):
                    for l in range(k): D[i + 1, l + 1] = min(D[i, l] + c[i, l], D[i, l + 1] + gamma, D[i + 1, l] + gamma)
                d = D[k, k]
            if d < best[0]: best = (d, a, j)
    return best


def philox_cases(rng):
    for shape_hi, shape_lo in [((), (1,)), ((1,), (257,)), ((7, 1), (1, 101)), ((2, 1, 3), (5, 1)), ((300,), (300,))]:
        hi, lo = (torch.from_numpy(rng.integers(-2**63, 2**63 - 1, s)).reshape(s) for s in (shape_hi, shape_lo))
        key = int(rng.integers(0, 2**63)) * 2 + 1
        for dtype in (torch.float32, torch.float64):
            want = uniform_reference(key, hi, lo, dtype == torch.float64)
            yield (
                f"{shape_hi} {shape_lo} {dtype}",
                lambda move, hi=hi, lo=lo, key=key, dtype=dtype: philox_uniform(key, move(hi), move(lo), dtype),
                want,
                (0, 0),
            )


def align_cases(rng):
    for m, n, k in [(1, 1, 1), (6, 5, 3), (9, 33, 4), (7, 70, 7), (12, 131, 5)]:
        C = torch.from_numpy(rng.normal(size=(m, n)))
        for gamma in (None, 0.0, 0.4):
            want = torch.tensor(literal_align(C.numpy(), k, gamma)[0], dtype=torch.float64)
            yield (
                f"{m} {n} {k} {gamma}",
                lambda move, C=C, k=k, gamma=gamma: torch.as_tensor(levenshtein_align(move(C[None]), k, gamma).phi[0]),
                want,
                (1e-9, 1e-5),
            )


def keyed_cases(rng):
    for m, n, k, T in [(1, 1, 1, 1), (5, 40, 3, 3), (9, 65, 6, 4)]:
        tokens, keys = torch.from_numpy(rng.integers(0, 50_000, m)), [int(x) for x in rng.integers(0, 2**63, T)]
        tokens[-1] = tokens[0]
        eta = torch.from_numpy(rng.random((T, m)))
        eta[:, -1] = eta[:, 0]
        u = np.stack([uniform_reference(key, np.arange(n), tokens.numpy()[:, None]) for key in keys])
        v = np.stack([uniform_reference(key, np.arange(n), np.full((m, 1), 2**62)) for key in keys])
        e = eta.float().double().numpy()[:, :, None]
        for cost, C in (("exp", np.log1p(-u)), ("its_l1", abs(v - e)), ("its_cov", -(v - 0.5) * (e - 0.5))):
            for gamma in (None, 0.0, 0.4):
                want = torch.tensor([literal_align(c, k, gamma)[0] for c in C])
                def call(move, tokens=tokens, keys=keys, n=n, k=k, gamma=gamma, cost=cost, eta=eta):
                    return keyed_align(move(tokens), keys, n, k, gamma, cost, None if cost == "exp" else eta).phi
                yield f"{m} {n} {k} {T} {cost} {gamma}", call, want, (1e-6, 1e-6)


def debruijn_cases(rng, push):
    g = torch.Generator().manual_seed(int(rng.integers(2**31)))
    for T, K in [(1, 1), (2, 4), (3, 3), (17, 2), (33, 2), (100, 1)]:
        for p_dtype, v_dtype in [
            (torch.float32, torch.float32),
            (torch.float32, torch.float64),
            (torch.float64, torch.float64),
            (torch.bfloat16, torch.float32),
            (torch.float16, torch.float64),
        ]:
            logits = (3 * torch.randn(T, T ** (K - 1), T, generator=g)).to(p_dtype)
            if T > 2: logits[0, 0, 1] = -torch.inf  # a forbidden token
            x = torch.rand(T**K, generator=g, dtype=v_dtype)
            for tau in (None, 0.7):
                table = logits if tau else logits.float().softmax(-1).to(p_dtype)
                q = (table.double() / tau).softmax(-1) if tau else table.double()
                want = (
                    torch.einsum("ar,art->rt", x.double().view(T, -1), q) if push else torch.einsum("art,rt->ar", q, x.double().view(-1, T))
                )
                fn = debruijn_push if push else debruijn_pull
                tolerance = (1e-9, 1e-12) if v_dtype == torch.float64 and p_dtype == torch.float64 else (2e-5, 1e-6)
                yield (
                    f"{T} {K} {p_dtype} {v_dtype} {tau}",
                    lambda move, x=x, table=table, tau=tau, fn=fn: fn(move(x), move(table), tau),
                    want.reshape(-1),
                    tolerance,
                )


def kl_cases(rng):
    g = torch.Generator().manual_seed(int(rng.integers(2**31)))
    for L, N, d, V in [(1, 1, 2, 1), (2, 3, 5, 33), (3, 7, 8, 301)]:
        students, teacher, U, bias = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((L, N, d), (N, d), (V, d), (V,)))
        weight = torch.rand(L, N, generator=g, dtype=torch.float64)
        for b, cap in ((None, None), (bias, None), (bias, 4.0), (None, 4.0)):
            def log_probabilities(h):
                z = h @ U.T + (0 if b is None else b)
                return (z if cap is None else cap * torch.tanh(z / cap)).log_softmax(-1)
            s = students.clone().requires_grad_()
            p, q = log_probabilities(teacher), log_probabilities(s)
            kl = (p.exp() * (p - q)).sum(-1)
            (kl * weight).sum().backward()
            for precision, tolerance in (("float32", (1e-4, 5e-5)), ("bfloat16", (5e-2, 5e-2))):
                def call(move, b=b, cap=cap, precision=precision):
                    s = move(students.float()).requires_grad_()
                    kl = kl_to_teacher(s, move(teacher.float()), move(U.float()), None if b is None else move(b.float()), cap, precision)
                    (kl * move(weight.float())).sum().backward()
                    return torch.cat([kl.detach().flatten(), s.grad.flatten()])

                yield (
                    f"{L} {N} {d} {V} {b is not None} {cap} {precision}",
                    call,
                    torch.cat([kl.detach().flatten(), s.grad.flatten()]),
                    tolerance,
                )


def spin_cases(rng):
    for n, rounds in [(1, 0), (1, 1), (257, 5), (40, 16)]:
        i, blocks = np.arange(n, dtype=np.uint64), [np.zeros(n, np.uint64)]
        for r in range(rounds): blocks += [np.broadcast_to(np.uint64(w), n) for w in philox4x32((i, 0, r, 0), (7, 0))]
        yield (
            f"philox {n} {rounds}",
            lambda move, n=n, rounds=rounds: spin("philox", n, rounds, move(torch.empty(0)).device).long() & 0xFFFFFFFF,
            (torch.from_numpy(np.bitwise_xor.reduce(blocks).astype(np.int64))),
            (0, 0),
        )
        x = (torch.arange(8).double() + torch.arange(n)[:, None] % 8) / 8
        for _ in range(0, rounds, 8): x = torch.exp(-x)
        yield (
            f"exp {n} {rounds}",
            lambda move, n=n, rounds=rounds: spin("exp", n, rounds, move(torch.empty(0)).device),
            x.sum(-1),
            (1e-5, 1e-5),
        )


HALVES = (torch.float32, torch.bfloat16, torch.float16)

def broken(logits):
    "Rows that have no distribution, and some that only look so."
    logits[0], logits[1, -1], logits[2, 0], logits[3, ::2] = -torch.inf, torch.nan, torch.inf, -torch.inf
    return logits


def confidence_cases(rng):
    g = torch.Generator().manual_seed(int(rng.integers(2**31)))
    for R, V, mask_id in [(1, 1, 1), (5, 2, 0), (6, 67, 66), (5, 513, 600), (2, 9001, 4)]:
        for dtype in HALVES:
            logits = (3 * torch.randn(R, V, generator=g)).to(dtype)
            if R > 3 and V > 2: logits = broken(logits)
            if V > 5000: logits[1] = logits[1, 0]  # all equal: the first one is the most probable
            x = torch.where(torch.rand(R, generator=g) < 0.8, mask_id, 1)
            for tau in (0.0, 0.05, 1.0):
                seed = int(rng.integers(2**63)) * 2 + 1
                def call(move, logits=logits, x=x, mask_id=mask_id, tau=tau, seed=seed):
                    return torch.stack([y.double() for y in masked_confidence(move(logits), move(x), mask_id, tau, seed)], -1).nan_to_num(
                        nan=-7
                    )

                want = confidence_reference(logits, x, mask_id, tau, seed).nan_to_num(nan=-7)
                yield f"{R} {V} {mask_id} {dtype} {tau}", call, want, (2e-5, 2e-6)


def log_softmax_cases(rng):
    g = torch.Generator().manual_seed(int(rng.integers(2**31)))
    for R, V in [(1, 1), (2, 3), (6, 67), (5, 600), (2, 4099)]:
        for dtype in HALVES:
            for n, ban in enumerate((None, torch.rand(V, generator=g) < 0.3, torch.rand(R, V, generator=g) < 0.3)):
                for tau, top_p in ((1.0, 1.0), (0.7, 1.0), (1.0, 0.9), (0.6, 0.35)):
                    logits = (3 * torch.randn(R, V, generator=g)).to(dtype)
                    if R > 4: logits = broken(logits)
                    if V > 4000: logits[1] = logits[1, 0]  # equal: the first ones are kept
                    if ban is not None: ban[..., V // 2] = False
                    def law(p):
                        free = logits.double() if ban is None else logits.double().masked_fill(ban, -torch.inf)
                        mass = (free / tau).softmax(-1).nan_to_num(0).sort(-1, descending=True).values
                        return (mass.cumsum(-1) - p)[mass > 0].abs().min() > 3e-6
                    while top_p < 1 and not law(top_p): top_p *= 0.99  # an edge within rounding of top_p is no question for floats
                    for held in (True, False):
                        def call(move, logits=logits, ban=ban, tau=tau, top_p=top_p, held=held):
                            found = in_shared_or_not(
                                _masked, held, lambda: masked_log_softmax(move(logits), None if ban is None else move(ban), tau, top_p)
                            )
                            return torch.cat([found.log_probs, found.paid[:, None], found.kept[:, None]], -1).nan_to_num(-7, 9e9, -9e9)
                        want = log_softmax_reference(logits, ban, tau, top_p).nan_to_num(-7, 9e9, -9e9)
                        yield f"{R} {V} {dtype} {n} {tau} {top_p} {held}", call, want, (2e-5, 2e-5)


def in_shared_or_not(kernel, held, call):
    "With the row in shared memory, or read again."
    cuda = kernel.cuda
    kernel.cuda = lambda *a: cuda(*a, room=None if held else 0)
    try: return call()
    finally: kernel.cuda = cuda


def sample_cases(rng):
    g = torch.Generator().manual_seed(int(rng.integers(2**31)))
    for R, V in [(1, 1), (3, 2), (6, 67), (5, 515), (2, 9001)]:
        for dtype in (*HALVES, torch.float64):
            logits = (3 * torch.randn(R, V, generator=g)).to(dtype)
            if R > 4: logits = broken(logits)
            keys, entry = torch.from_numpy(rng.integers(-2**63, 2**63 - 1, R)), torch.from_numpy(rng.integers(0, 2**62, R))
            pi = torch.stack([torch.randperm(V, generator=g) for _ in range(R)])
            for tau in (0.3, 1.0):
                for rank, held in ((None, True), (pi, True), (pi[0], False)):
                    def call(move, logits=logits, keys=keys, entry=entry, rank=rank, tau=tau, held=held):
                        return in_shared_or_not(
                            _sample,
                            held,
                            lambda: keyed_sample(move(logits), move(keys), move(entry), None if rank is None else move(rank), tau),
                        )
                    words, scheme = [int(k) % 2**64 for k in keys], "exp" if rank is None else "its"
                    yield f"{R} {V} {dtype} {tau} {scheme} {held}", call, sample_reference(logits, words, entry, scheme, rank, tau), (0, 0)


def chain_reference(p, q, drafts, u, pick):
    "Float64, literally; and how far the nearest decision was from going the other way."
    (B, K, L), rows, far = drafts.shape, [], 1.0
    for b in range(B):
        alive, tokens, last, gammas, n = list(range(K)), [-1] * q.shape[2], -1, [0.0] * L, 0
        for j in range(q.shape[2]):
            P, Q = p[b, min(alive[0], p.shape[1] - 1), min(j, L - 1)], q[b, min(alive[0], q.shape[1] - 1), j]
            if j == L: P, x, v = Q, torch.zeros(0, dtype=torch.int64), []
            else: x, v = drafts[b, alive, j], u[b, j, alive]
            if j < L:
                y, index, gammas[j] = _select_reference(P, Q, x, v, pick[b])
                far = min([far, *(v * gammas[j] * P[x] / Q[x].clamp(min=1e-30) - 1).abs().tolist()])
            else: y, index = int(torch.searchsorted(Q.cumsum(0), pick[b] * Q.sum())), -1
            if index < 0:
                beta, k = float(torch.minimum(P, Q / max(gammas[min(j, L - 1)], 1)).sum()), len(alive)
                w = Q if j == L else (Q - torch.minimum(P, Q / gammas[j]) * ((1 - (1 - beta) ** k) / beta)).clamp(min=0)
                if w.sum() > 0: far = min(far, float((w.cumsum(0)[:-1] / w.sum() - pick[b]).abs().min()) if len(w) > 1 else 1)
            tokens[j] = y
            if index < 0: break
            last, n, alive = alive[index], j + 1, [a for a in alive if drafts[b, a, j] == y]
        rows.append([n, last, *gammas, *tokens])
    return torch.tensor(rows, dtype=torch.float64), far


def k_seq_cases(rng):
    g = torch.Generator().manual_seed(int(rng.integers(2**31)))
    for B, K, L, V in [(1, 1, 1, 1), (3, 1, 3, 67), (4, 3, 2, 5), (2, 8, 1, 1501), (2, 2, 4, 40), (2, 32, 1, 9)]:
        for dtype in (None, *HALVES):
            for shared, bonus in ((True, False), (False, True)):
                if shared and L > 1: continue
                a, b = (1.5 * torch.randn(B, 1 if shared else K, n, V, generator=g) for n in (L, L + bonus))
                b[:, :, :L] = 0.5 * b[:, :, :L] + 0.5 * a  # not too far apart
                if V > 30: a[..., 3], b[..., 5] = -torch.inf, -torch.inf
                if not shared: a, b = (torch.cat([x[:, :1, :1].expand(-1, K, -1, -1), x[:, :, 1:]], 2) for x in (a, b))
                a, b = (x.to(dtype) if dtype else x.softmax(-1) for x in (a, b))
                p, q = (x.double().softmax(-1) if dtype else x.double() for x in (a, b))
                for _ in range(60):  # uniforms of which no decision hangs on rounding
                    drafts = torch.multinomial(p.expand(B, K, L, V).reshape(-1, V), 1, generator=g).view(B, K, L)
                    if K > 1 and L > 1: drafts[:, 1, 0] = drafts[:, 0, 0]
                    u, pick = torch.rand(B, L, K, generator=g).double(), torch.rand(B, generator=g).double()
                    want, far = chain_reference(p, q, drafts, u, pick)
                    if far > 1e-4: break
                def call(move, a=a, b=b, drafts=drafts, u=u, pick=pick, bonus=bonus, logits=dtype is not None):
                    a, b, drafts, u, pick = map(move, (a, b, drafts, u, pick))
                    if bonus: found = chain_verify(a, b, drafts, u, pick, logits)
                    else:
                        one = k_seq_select(a[:, 0, 0], b[:, 0, 0], drafts[:, :, 0], u[:, 0], pick, logits)
                        return torch.stack([(one.index >= 0).double(), one.index.double(), one.gamma, one.token.double()], -1)
                    return torch.cat(
                        [found.accepted[:, None].double(), found.draft[:, None].double(), found.gamma, found.token.double()], -1
                    )

                yield f"{B} {K} {L} {V} {dtype} {shared}", call, want, (2e-4, 2e-4)


CASES = {
    "philox": philox_cases, "levenshtein_align": align_cases, "key_costs": keyed_cases, "kl_to_teacher": kl_cases,
    "debruijn_push": lambda rng: debruijn_cases(rng, True), "debruijn_pull": lambda rng: debruijn_cases(rng, False),
    "keyed_sample": sample_cases, "masked_log_softmax": log_softmax_cases, "spin": spin_cases,
    "masked_confidence": confidence_cases, "k_seq_select": k_seq_cases, **MORE_CASES,
}
