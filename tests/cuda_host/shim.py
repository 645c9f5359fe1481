"""Runs CUDA C++ sources on the CPU (cuda_host.h): compiles with g++ into a cached shared object, launches through ctypes.

`HostLauncher()` is what `arlm_nb.kernels.dispatch.host_launcher` takes; `HostError` carries what the shim found wrong.
"""
import ctypes, hashlib, os, re, shutil, subprocess, tempfile
from pathlib import Path
import numpy as np
import torch

HERE = Path(__file__).parent
GXX = shutil.which("g++")


class HostError(RuntimeError):
    "The kernel did something that a GPU does not define."


def rewrite(source: str) -> str:
    "Shared declarations become checked arrays; everything else stays the kernel's own text, line for line."
    def dynamic(m): return f"cuda_host::Dynamic<{m[1]}> {m[2]}{{\"{m[2]}\"}};"
    def static(m):
        dims = ", ".join(re.findall(r"\[([^\]]*)\]", m[3]))
        if not dims:
            return f'static cuda_host::SharedScalar<{m[1]}> {m[2]}_memory("{m[2]}"); {m[1]}& {m[2]} = *({m[1]}*){m[2]}_memory.memory;'
        return f"static cuda_host::Shared<{m[1]}, {dims}> {m[2]}(\"{m[2]}\");"
    source = re.sub(r"extern\s+__shared__\s+(\w[\w ]*?)\s+(\w+)\s*\[\s*\]\s*;", dynamic, source)
    source = re.sub(r"__shared__\s+(\w[\w ]*?)\s+(\w+)\s*((?:\[[^\]]*\]\s*)*);", static, source)
    if "__shared__" in source:
        raise ValueError("one shared variable for each declaration, please: " + source[source.index("__shared__") :][:80])
    return source


def cache_folder() -> Path:
    folder = Path(os.environ.get("CUDA_HOST_CACHE", Path(tempfile.gettempdir()) / f"cuda_host_{os.getuid()}"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def build(source: str, entries) -> ctypes.CDLL:
    "Compile once; the file's name is the hash of everything that went in."
    if GXX is None: raise FileNotFoundError("the host shim needs g++")
    text = (
        '#include "cuda_host.h"\n#line 1 "kernel"\n'
        + rewrite(source)
        + "\nCUDA_HOST_COMMON\n"
        + "".join(f"CUDA_HOST_ENTRY({e})\n" for e in entries)
    )
    flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-fno-strict-aliasing", "-ffp-contract=off", "-fsigned-char", "-w"]
    key = hashlib.sha256((text + (HERE / "cuda_host.h").read_text() + " ".join(flags)).encode()).hexdigest()[:24]
    target = cache_folder() / f"{key}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory() as work:
            (cpp := Path(work) / "kernel.cpp").write_text(text)
            done = subprocess.run(
                [GXX, *flags, "-I", str(HERE), str(cpp), "-o", str(out := Path(work) / "kernel.so")], capture_output=True, text=True
            )
            if done.returncode: raise HostError(f"g++ refused the source:\n{done.stderr[:4000]}")
            shutil.copy(out, part := target.with_suffix(f".{os.getpid()}"))
            os.replace(part, target)
    library = ctypes.CDLL(str(target))
    library.cuda_host_message.restype = ctypes.c_char_p
    library.cuda_host_guarded.restype = ctypes.c_void_p
    library.cuda_host_switches.restype = ctypes.c_ulonglong
    return library


class HostLauncher:
    "Callable (kernel, entry, grid, block, args, shared): runs one launch on CPU tensors."
    def __init__(self, schedules=(0, 1, 7), guard=True):
        self.schedules, self.guard, self.libraries, self.launches, self.turn = schedules, guard, {}, [], 0

    def library(self, kernel):
        key = (kernel.source, kernel.entries)
        if key not in self.libraries: self.libraries[key] = build(*key)
        return self.libraries[key]

    def __call__(self, kernel, entry, grid, block, args, shared=0):
        library, self.turn = self.library(kernel), self.turn + 1
        schedule = self.schedules[self.turn % len(self.schedules)]
        kinds = (ctypes.c_int * 64)()
        n = getattr(library, f"cuda_host_kinds_{entry}")(kinds)
        if n != len(args): raise HostError(f"{entry} takes {n} arguments, got {len(args)}")
        self.launches.append((entry, grid, block, shared))
        held, addresses, back = [], [], []
        for i, (a, kind) in enumerate(zip(args, kinds)):
            box, restore = self._argument(library, entry, i, a, kind)
            held.append(box)
            addresses.append(ctypes.addressof(box))
            if restore: back.append(restore)
        try:
            pointers = (ctypes.c_void_p * len(addresses))(*addresses)
            status = getattr(library, f"cuda_host_run_{entry}")(
                (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), ctypes.c_ulonglong(shared), pointers, schedule
            )
            if status: raise HostError(f"{entry}: " + library.cuda_host_message().decode())
        finally:
            for restore in back: restore()

    def _argument(self, library, entry, i, a, kind):
        what = f"{entry}, argument {i}"
        if a is None:
            if kind < 1000: raise HostError(f"{what} is a number, got a null pointer")
            return ctypes.c_void_p(0), None
        if not isinstance(a, torch.Tensor):
            a = np.asarray(a)
            if kind >= 1000 or a.ndim: raise HostError(f"{what}: expected {'a tensor' if kind >= 1000 else 'a number'}, got {type(a)}")
            want = (kind // 10, bool(kind % 10))
            if (a.dtype.itemsize, a.dtype.kind == "f") != want:
                raise HostError(f"{what}: the source wants {want[0]} bytes{' of floating point' if want[1] else ''}, got {a.dtype}")
            return (ctypes.c_char * a.dtype.itemsize).from_buffer_copy(a.tobytes()), None
        if kind < 1000: raise HostError(f"{what} is a number, got a tensor")
        size, floating = (kind - 1000) // 10, bool(kind % 10)
        half = a.dtype in (torch.float16, torch.bfloat16)
        if a.element_size() != size or (a.is_floating_point() and not half) != floating:
            raise HostError(f"{what}: the source points to {size}-byte {'floats' if floating else 'integers or halves'}, got {a.dtype}")
        data, nbytes = a.data_ptr(), a.numel() * size
        if not self.guard: return ctypes.c_void_p(data), None
        mapped = ctypes.c_ulonglong()
        p = library.cuda_host_guarded(ctypes.c_ulonglong(nbytes), ctypes.byref(mapped))
        if nbytes: ctypes.memmove(p, data, nbytes)
        def restore():
            gap = -nbytes % 16
            torn = ctypes.string_at(p + nbytes, gap) != b"\xa5" * gap
            if nbytes: ctypes.memmove(data, p, nbytes)
            library.cuda_host_release(ctypes.c_void_p(p), ctypes.c_ulonglong(nbytes), mapped)
            if torn: raise HostError(f"{what}: something was written past the end of the tensor")
        return ctypes.c_void_p(p), restore
