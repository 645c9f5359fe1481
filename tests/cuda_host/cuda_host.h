// cuda_host.h: runs a CUDA C++ kernel's own source on the CPU, one block after another, each thread of a block a fiber.
//
// A fiber runs until it meets a barrier, a warp operation or its end; then the next one runs. Barriers and warp operations are checked: a
// thread that never arrives, arrives at another line, or is not named in the mask stops the launch with a message. Shared arrays are checked
// at every subscript, carry guard bytes behind them, and hold garbage (0xFF) when a block starts. Tensors may be put against a guard page.
#pragma once
#include <cmath>
#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <algorithm>
#include <new>
#include <random>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define CUDA_HOST 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

namespace cuda_host {

// ---------------------------------------------------------------- state of the running block
enum State { READY, AT_BARRIER, AT_WARP, DONE };
enum Op { SHUFFLE, BALLOT, SYNC, MATCH };
struct Fiber {
  ucontext_t context;
  char* stack = nullptr;
  State state = DONE;
  int line = 0;            // where it waits
  bool vote = false;       // for __syncthreads_count and friends
  unsigned mask = 0;       // warp operation: who takes part
  Op op = SYNC;
  unsigned long long value = 0, result = 0;
  int source = 0;
  uint3 index{};
};
inline std::vector<Fiber> fibers;
inline int live = 0, current = 0;
inline ucontext_t scheduler;
inline char message[512];
inline sigjmp_buf escape;
inline volatile bool running = false;
inline uint3 block_index, thread_index;
inline dim3 block_size, grid_size;
inline unsigned long long switches = 0;
inline int votes = 0;
constexpr size_t STACK = 128 * 1024;

[[noreturn]] inline void fail(const char* format, ...) {
  va_list args;
  va_start(args, format);
  int n = snprintf(message, sizeof message, "block (%u, %u, %u), thread %d: ", block_index.x, block_index.y, block_index.z, current);
  vsnprintf(message + n, sizeof message - n, format, args);
  va_end(args);
  siglongjmp(escape, 1);
}

// ---------------------------------------------------------------- switching between fibers
#if defined(__x86_64__)
// saves the callee-saved registers on the own stack and continues on the other: no system call, unlike swapcontext
extern "C" void cuda_host_switch(void** save, void* load);
asm(R"(
.text
.weak cuda_host_switch
.type cuda_host_switch,@function
cuda_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
inline std::vector<void*> pointers;
inline void* home = nullptr;
inline void start_fiber(int i, void (*entry)()) {
  void** top = (void**)(fibers[i].stack + STACK);
  *--top = nullptr;                 // keeps the stack 16-byte aligned at entry
  *--top = (void*)entry;
  for (int r = 0; r < 6; ++r) *--top = nullptr;
  pointers[i] = top;
}
inline void to_fiber(int i) { cuda_host_switch(&home, pointers[i]); }
inline void to_scheduler() { cuda_host_switch(&pointers[current], home); }
#else
inline std::vector<void*> pointers;
inline void start_fiber(int i, void (*entry)()) {
  getcontext(&fibers[i].context);
  fibers[i].context.uc_stack = {.ss_sp = fibers[i].stack, .ss_flags = 0, .ss_size = STACK};
  fibers[i].context.uc_link = &scheduler;
  makecontext(&fibers[i].context, entry, 0);
}
inline void to_fiber(int i) { swapcontext(&scheduler, &fibers[i].context); }
inline void to_scheduler() { swapcontext(&fibers[current].context, &scheduler); }
#endif

inline void wait() {
  int me = current;
  ++switches;
  to_scheduler();
  current = me;
  thread_index = fibers[me].index;
}

// ---------------------------------------------------------------- barriers
inline void barrier(int line, bool vote = false) {
  Fiber& f = fibers[current];
  f.state = AT_BARRIER;
  f.line = line;
  f.vote = vote;
  wait();
}
inline int barrier_count(int line, bool vote) { barrier(line, vote); return votes; }

inline bool release_barrier() {  // all threads wait at one barrier: let them go
  int waiting = 0, done = 0, first = -1, other = -1, ended = -1;
  for (int i = 0; i < live; ++i) {
    if (fibers[i].state == AT_BARRIER) { if (first < 0) first = i; else if (fibers[i].line != fibers[first].line) other = i; ++waiting; }
    else if (fibers[i].state == DONE) { ++done; ended = i; }
  }
  if (!waiting || waiting + done < live) return false;
  current = first;
  if (done) fail("__syncthreads at line %d: %d of %d threads wait, thread %d ended without reaching it", fibers[first].line, waiting, live, ended);
  if (other >= 0) fail("__syncthreads at line %d, but thread %d waits at line %d", fibers[first].line, other, fibers[other].line);
  votes = 0;
  for (int i = 0; i < live; ++i) { votes += fibers[i].vote; fibers[i].state = READY; }
  return true;
}

// ---------------------------------------------------------------- warp operations
inline unsigned long long warp_operation(int line, Op op, unsigned mask, unsigned long long value, int source) {
  Fiber& f = fibers[current];
  int lane = current % 32, warp = current / 32 * 32;
  if (!(mask >> lane & 1)) fail("warp operation at line %d: lane %d is not in its own mask %08x", line, lane, mask);
  for (int l = 0; l < 32; ++l)
    if ((mask >> l & 1) && warp + l >= live) fail("warp operation at line %d: the mask %08x names lane %d, but the block has %d threads", line, mask, l, live);
  f.state = AT_WARP; f.line = line; f.op = op; f.mask = mask; f.value = value; f.source = source;
  wait();
  return fibers[current].result;
}

inline bool release_warps() {
  bool any = false;
  for (int warp = 0; warp < live; warp += 32) {
    unsigned todo = 0;
    for (int l = 0; l < 32 && warp + l < live; ++l) if (fibers[warp + l].state == AT_WARP) todo |= 1u << l;
    while (todo) {
      int first = __builtin_ctz(todo);
      Fiber& f = fibers[warp + first];
      unsigned mask = f.mask;
      todo &= ~mask;
      bool all = true;
      for (int l = 0; l < 32; ++l) if (mask >> l & 1) {
        Fiber& g = fibers[warp + l];
        if (g.state == DONE) { current = warp + first; fail("warp operation at line %d: lane %d, named in mask %08x, has ended", f.line, l, mask); }
        if (g.state != AT_WARP) all = false;
        else if (g.mask != mask || g.line != f.line || g.op != f.op) {
          current = warp + first;
          fail("warp operation at line %d with mask %08x, but lane %d is at line %d with mask %08x", f.line, mask, l, g.line, g.mask);
        }
      }
      if (!all) continue;
      unsigned ballot = 0;
      for (int l = 0; l < 32; ++l) if ((mask >> l & 1) && fibers[warp + l].value) ballot |= 1u << l;
      for (int l = 0; l < 32; ++l) if (mask >> l & 1) {
        Fiber& g = fibers[warp + l];
        if (g.op == BALLOT) g.result = ballot;
        else if (g.op == SHUFFLE) {
          if (!(mask >> g.source & 1)) { current = warp + l; fail("shuffle at line %d reads lane %d, which is not in mask %08x", g.line, g.source, mask); }
          g.result = fibers[warp + g.source].value;
        } else if (g.op == MATCH) {
          g.result = 0;
          for (int o = 0; o < 32; ++o) if ((mask >> o & 1) && fibers[warp + o].value == g.value) g.result |= 1u << o;
        }
        g.state = READY;
      }
      any = true;
    }
  }
  return any;
}

template <class T> inline unsigned long long pack(T x) { static_assert(sizeof(T) <= 8); unsigned long long b = 0; memcpy(&b, &x, sizeof x); return b; }
template <class T> inline T unpack(unsigned long long b) { T x; memcpy((void*)&x, &b, sizeof x); return x; }
template <class T> inline T shuffle(int line, unsigned mask, T x, int source) { return unpack<T>(warp_operation(line, SHUFFLE, mask, pack(x), source)); }
template <class T> inline T shuffle_up(int line, unsigned mask, T x, unsigned delta, int width = 32) {
  int lane = current % 32, start = lane / width * width;
  return shuffle(line, mask, x, lane - int(delta) < start ? lane : lane - int(delta));
}
template <class T> inline T shuffle_down(int line, unsigned mask, T x, unsigned delta, int width = 32) {
  int lane = current % 32, end = lane / width * width + width;
  return shuffle(line, mask, x, lane + int(delta) >= end ? lane : lane + int(delta));
}
template <class T> inline T shuffle_xor(int line, unsigned mask, T x, int bits, int width = 32) {
  int lane = current % 32, other = lane ^ bits;
  return shuffle(line, mask, x, other >= lane / width * width + width ? lane : other);
}
template <class T> inline T shuffle_index(int line, unsigned mask, T x, int index, int width = 32) {
  int lane = current % 32;
  return shuffle(line, mask, x, lane / width * width + (index & (width - 1)));
}
inline unsigned active() {  // lanes of this warp that have not ended
  unsigned mask = 0;
  for (int l = 0, warp = current / 32 * 32; l < 32 && warp + l < live; ++l) if (fibers[warp + l].state != DONE) mask |= 1u << l;
  return mask;
}

// ---------------------------------------------------------------- shared memory
constexpr size_t GUARD = 64;
struct SharedBlock { char* data; size_t size; const char* name; };
inline std::vector<SharedBlock> shared_blocks;  // static arrays met so far
inline char* dynamic_memory = nullptr;
inline size_t dynamic_size = 0;
inline void poison(SharedBlock& b) { memset(b.data, 0xFF, b.size); memset(b.data + b.size, 0xA5, GUARD); }
inline void check_guard(SharedBlock& b) {
  for (size_t i = 0; i < GUARD; ++i) if ((unsigned char)b.data[b.size + i] != 0xA5) fail("shared array %s: something was written %zu bytes past its end", b.name, i);
}

template <class T, size_t... N> struct View;   // a checked array of 1 or more dimensions
template <class T, size_t N> struct View<T, N> {
  T* data; const char* name;
  T& operator[](long long i) const {
    if (i < 0 || i >= (long long)N) fail("shared array %s: index %lld is outside [0, %zu)", name, i, N);
    return data[i];
  }
  operator T*() const { return data; }
};
template <class T, size_t N, size_t M, size_t... R> struct View<T, N, M, R...> {
  T* data; const char* name;
  View<T, M, R...> operator[](long long i) const {
    if (i < 0 || i >= (long long)N) fail("shared array %s: index %lld is outside [0, %zu)", name, i, N);
    return {data + i * (M * ... * R), name};
  }
};
template <class T, size_t... N> struct Shared : View<T, N...> {
  alignas(16) char memory[sizeof(T) * (N * ...) + GUARD];
  explicit Shared(const char* name) {
    this->data = (T*)memory;
    this->name = name;
    shared_blocks.push_back({memory, sizeof(T) * (N * ...), name});
    poison(shared_blocks.back());
  }
};
template <class T> struct SharedScalar {
  alignas(16) char memory[sizeof(T) + GUARD];
  explicit SharedScalar(const char* name) { shared_blocks.push_back({memory, sizeof(T), name}); poison(shared_blocks.back()); }
};
template <class T> struct Dynamic {   // extern __shared__ T name[]
  const char* name;
  T& operator[](long long i) const {
    if (i < 0 || (i + 1) * (long long)sizeof(T) > (long long)dynamic_size)
      fail("dynamic shared array %s: index %lld is outside its %zu bytes", name, i, dynamic_size);
    return ((T*)dynamic_memory)[i];
  }
  operator T*() const { return (T*)dynamic_memory; }
  template <class U> explicit operator U*() const { return (U*)dynamic_memory; }
  T* operator+(long long i) const { return (T*)dynamic_memory + i; }
};

// ---------------------------------------------------------------- running a grid
inline void (*body)() = nullptr;
inline void fiber_main() {
  body();
  fibers[current].state = DONE;
  for (;;) to_scheduler();
}
inline void on_signal(int number, siginfo_t* info, void*) {
  if (!running) { signal(number, SIG_DFL); return; }
  snprintf(message, sizeof message, "block (%u, %u, %u), thread %d: %s", block_index.x, block_index.y, block_index.z, current,
           number == SIGSEGV || number == SIGBUS ? "an address outside every tensor was touched" : "trapped (division by zero or an unreachable state)");
  siglongjmp(escape, 2);
}

inline void run_block(const std::vector<int>& order) {
  for (auto& b : shared_blocks) poison(b);
  for (int i = 0; i < live; ++i) {
    fibers[i].state = READY;
    fibers[i].index = {i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)};
    start_fiber(i, fiber_main);
  }
  for (;;) {
    bool ran = false;
    for (int i : order) if (fibers[i].state == READY) {
      current = i;
      thread_index = fibers[i].index;
      to_fiber(i);
      ran = true;
    }
    if (release_warps()) continue;
    if (release_barrier()) continue;
    if (ran) continue;
    int waiting = -1, barriers = 0;
    for (int i = 0; i < live; ++i) if (fibers[i].state != DONE) { if (waiting < 0) waiting = i; barriers += fibers[i].state == AT_BARRIER; }
    if (waiting < 0) break;
    current = waiting;
    fail("deadlock: waits at line %d; %d threads wait at __syncthreads, others elsewhere", fibers[waiting].line, barriers);
  }
  for (auto& b : shared_blocks) check_guard(b);
}

// schedule: 0 in order, 1 backwards, otherwise a seed for a random order. Returns 0, or 1 with `message` set.
inline int launch(void (*one_thread)(), dim3 grid, dim3 block, size_t shared, int schedule) {
  body = one_thread;
  grid_size = grid; block_size = block;
  live = block.x * block.y * block.z;
  while ((int)fibers.size() < live) { fibers.emplace_back(); fibers.back().stack = (char*)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }
  pointers.resize(fibers.size());
  std::vector<char> memory(shared + GUARD + 16);
  dynamic_memory = (char*)(((uintptr_t)memory.data() + 15) & ~uintptr_t(15));
  dynamic_size = shared;
  std::vector<int> order(live);
  for (int i = 0; i < live; ++i) order[i] = schedule == 1 ? live - 1 - i : i;
  std::mt19937 random(schedule);
  char signal_stack[64 * 1024];
  stack_t alternate = {.ss_sp = signal_stack, .ss_flags = 0, .ss_size = sizeof signal_stack}, before;
  sigaltstack(&alternate, &before);
  struct sigaction action = {}, old[4];
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  const int signals[4] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
  for (int i = 0; i < 4; ++i) sigaction(signals[i], &action, &old[i]);
  volatile int status = 0;
  message[0] = 0;
  running = true;
  if (!sigsetjmp(escape, 1)) {
    for (unsigned z = 0; z < grid.z; ++z) for (unsigned y = 0; y < grid.y; ++y) for (unsigned x = 0; x < grid.x; ++x) {
      block_index = {x, y, z};
      SharedBlock dynamic = {dynamic_memory, shared, "(dynamic)"};
      poison(dynamic);
      if (schedule > 1) std::shuffle(order.begin(), order.end(), random);
      run_block(order);
      check_guard(dynamic);
    }
  } else status = 1;
  running = false;
  for (int i = 0; i < 4; ++i) sigaction(signals[i], &old[i], nullptr);
  sigaltstack(&before, nullptr);
  return status;
}

// ---------------------------------------------------------------- calling a kernel with an array of argument addresses
template <class> struct Kind;   // type letter and size, so that the caller can check what it passes
template <class T> constexpr int kind_of() {
  if constexpr (std::is_pointer_v<T>) return 1000 + (int)sizeof(std::remove_pointer_t<T>) * 10 + (std::is_floating_point_v<std::remove_cv_t<std::remove_pointer_t<T>>> ? 1 : 0);
  else return (int)sizeof(T) * 10 + (std::is_floating_point_v<T> ? 1 : 0);
}
inline void** arguments;
template <class... A, size_t... I> inline void call(void (*f)(A...), std::index_sequence<I...>) { f(*(std::remove_cv_t<A>*)arguments[I]...); }
template <class... A> inline void call_all(void (*f)(A...)) { call(f, std::index_sequence_for<A...>{}); }
template <class... A> inline int kinds_of(void (*)(A...), int* out) { int n = 0; ((out[n++] = kind_of<std::remove_cv_t<A>>()), ...); return n; }

// memory whose last byte lies before a fence that cannot be touched, and behind another one (16-byte aligned start, guard bytes in the gap). A fence is wide,
// so that an index that is far off meets it and not somebody else's memory
constexpr size_t FENCE = size_t(1) << 22;
inline void* guarded(size_t size, size_t& mapped) {
  size_t page = sysconf(_SC_PAGESIZE), room = (size + 15) / 16 * 16, inside = (room + page - 1) / page * page;
  mapped = inside + 2 * FENCE;
  char* base = (char*)mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (inside) mprotect(base + FENCE, inside, PROT_READ | PROT_WRITE);
  memset(base + FENCE, 0xA5, inside);
  return base + FENCE + inside - room;
}
inline void release(void* p, size_t size, size_t mapped) { munmap((char*)p + (size + 15) / 16 * 16 + FENCE - mapped, mapped); }
}  // namespace cuda_host

#define threadIdx (cuda_host::thread_index)
#define blockIdx (cuda_host::block_index)
#define blockDim (cuda_host::block_size)
#define gridDim (cuda_host::grid_size)
#define warpSize 32

#define __syncthreads() cuda_host::barrier(__LINE__)
#define __syncthreads_count(p) cuda_host::barrier_count(__LINE__, (p) != 0)
#define __syncthreads_or(p) (cuda_host::barrier_count(__LINE__, (p) != 0) > 0)
#define __syncthreads_and(p) (cuda_host::barrier_count(__LINE__, (p) != 0) == cuda_host::live)
#define CUDA_HOST_MASK_(mask, ...) mask
#define __syncwarp(...) cuda_host::warp_operation(__LINE__, cuda_host::SYNC, CUDA_HOST_MASK_(__VA_ARGS__ __VA_OPT__(,) 0xffffffffu), 0, 0)
#define __shfl_sync(mask, ...) cuda_host::shuffle_index(__LINE__, mask, __VA_ARGS__)
#define __shfl_up_sync(mask, ...) cuda_host::shuffle_up(__LINE__, mask, __VA_ARGS__)
#define __shfl_down_sync(mask, ...) cuda_host::shuffle_down(__LINE__, mask, __VA_ARGS__)
#define __shfl_xor_sync(mask, ...) cuda_host::shuffle_xor(__LINE__, mask, __VA_ARGS__)
#define __ballot_sync(mask, p) unsigned(cuda_host::warp_operation(__LINE__, cuda_host::BALLOT, mask, (p) != 0, 0))
#define __any_sync(mask, p) (__ballot_sync(mask, p) != 0)
#define __all_sync(mask, p) (__ballot_sync(mask, p) == (mask))
#define __match_any_sync(mask, v) unsigned(cuda_host::warp_operation(__LINE__, cuda_host::MATCH, mask, cuda_host::pack(v), 0))
#define __activemask() cuda_host::active()
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---------------------------------------------------------------- atomics (one fiber runs at a time)
template <class T, class V> inline T atomicAdd(T* p, V v) { T old = *p; *p = old + T(v); return old; }
template <class T, class V> inline T atomicSub(T* p, V v) { T old = *p; *p = old - T(v); return old; }
template <class T, class V> inline T atomicMin(T* p, V v) { T old = *p; *p = std::min(old, T(v)); return old; }
template <class T, class V> inline T atomicMax(T* p, V v) { T old = *p; *p = std::max(old, T(v)); return old; }
template <class T, class V> inline T atomicExch(T* p, V v) { T old = *p; *p = T(v); return old; }
template <class T, class V> inline T atomicOr(T* p, V v) { T old = *p; *p = old | T(v); return old; }
template <class T, class V> inline T atomicAnd(T* p, V v) { T old = *p; *p = old & T(v); return old; }
template <class T, class V> inline T atomicXor(T* p, V v) { T old = *p; *p = old ^ T(v); return old; }
template <class T, class U, class V> inline T atomicCAS(T* p, U expected, V v) { T old = *p; if (old == T(expected)) *p = T(v); return old; }

// ---------------------------------------------------------------- intrinsics
inline float __int_as_float(int x) { return cuda_host::unpack<float>(cuda_host::pack(x)); }
inline float __uint_as_float(unsigned x) { return cuda_host::unpack<float>(cuda_host::pack(x)); }
inline int __float_as_int(float x) { return cuda_host::unpack<int>(cuda_host::pack(x)); }
inline unsigned __float_as_uint(float x) { return cuda_host::unpack<unsigned>(cuda_host::pack(x)); }
inline double __longlong_as_double(long long x) { return cuda_host::unpack<double>(cuda_host::pack(x)); }
inline long long __double_as_longlong(double x) { return cuda_host::unpack<long long>(cuda_host::pack(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) { unsigned y = 0; for (int i = 0; i < 32; ++i) y = y << 1 | (x >> i & 1); return y; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fadd_rn(float x, float y) { volatile float z = x + y; return z; }
inline float __fmul_rn(float x, float y) { volatile float z = x * y; return z; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
template <class T> inline T __ldg(const T* p) { return *p; }
template <class T> inline T __ldcs(const T* p) { return *p; }
using std::isinf; using std::isnan; using std::isfinite;
template <class A, class B> inline std::common_type_t<A, B> min(A a, B b) { using C = std::common_type_t<A, B>; return C(b) < C(a) ? C(b) : C(a); }
template <class A, class B> inline std::common_type_t<A, B> max(A a, B b) { using C = std::common_type_t<A, B>; return C(a) < C(b) ? C(b) : C(a); }

inline float cuda_host_half(unsigned short bits) {  // IEEE half -> float
  unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) { float x = ldexpf(float(fraction), -24); return sign ? -x : x; }
  return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}
inline unsigned short cuda_host_to_half(float x) { _Float16 h = (_Float16)x; unsigned short b; memcpy(&b, &h, 2); return b; }

// ---------------------------------------------------------------- what Python calls
extern "C" {
inline const char* cuda_host_message_() { return cuda_host::message; }
}
#define CUDA_HOST_ENTRY(NAME) \
  extern "C" int cuda_host_kinds_##NAME(int* out) { return cuda_host::kinds_of(&NAME, out); } \
  extern "C" int cuda_host_run_##NAME(const unsigned* g, const unsigned* b, unsigned long long shared, void** args, int schedule) { \
    cuda_host::arguments = args; \
    return cuda_host::launch([] { cuda_host::call_all(&NAME); }, {g[0], g[1], g[2]}, {b[0], b[1], b[2]}, shared, schedule); \
  }
#define CUDA_HOST_COMMON \
  extern "C" const char* cuda_host_message() { return cuda_host::message; } \
  extern "C" unsigned long long cuda_host_switches() { return cuda_host::switches; } \
  extern "C" void* cuda_host_guarded(unsigned long long size, unsigned long long* mapped) { size_t m; void* p = cuda_host::guarded(size, m); *mapped = m; return p; } \
  extern "C" void cuda_host_release(void* p, unsigned long long size, unsigned long long mapped) { cuda_host::release(p, size, mapped); }
