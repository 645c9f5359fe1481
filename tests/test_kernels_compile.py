"Every kernel's source compiles for sm_80 and sm_90 with no GPU at hand, and no kernel spills a register."
import re, shutil, subprocess
import importlib, pkgutil
import pytest
import arlm_nb.kernels
from arlm_nb.kernels.dispatch import KERNELS

for module in pkgutil.iter_modules(arlm_nb.kernels.__path__): importlib.import_module(f"arlm_nb.kernels.{module.name}")
NVCC = shutil.which("nvcc")
ARCHITECTURES = ("sm_80", "sm_90")


def nvrtc():
    "CuPy's binding to NVRTC, or None where the library is missing."
    try:
        from cupy_backends.cuda.libs import nvrtc
        nvrtc.getVersion()
        return nvrtc
    except Exception: return None


def resources(log: str) -> dict[str, dict]:
    "ptxas -v -> {entry: registers, shared bytes, spilled bytes}"
    found, entry = {}, None
    for line in log.splitlines():
        if m := re.search(r"Compiling entry function '(\w+)'", line): found[entry := m[1]] = {}
        elif m := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            if entry in found and "spills" not in found[entry]: found[entry] |= {"stack": int(m[1]), "spills": int(m[2]) + int(m[3])}
        elif m := re.search(r"Used (\d+) registers", line):
            found[entry] |= {"registers": int(m[1]), "shared": int(s[1]) if (s := re.search(r"(\d+) bytes smem", line)) else 0}
    return found


def check_resources(kernel, found: dict[str, dict], arch: str) -> None:
    "Every entry was compiled, none spills, none needs more than half of the registers a thread may have."
    assert set(found) == set(kernel.entries), (arch, set(kernel.entries) ^ set(found))
    for entry, r in found.items():
        print(f"{arch} {entry}: {r}")
        assert r["spills"] == 0 and r["registers"] <= 128, (arch, entry, r)


def by_nvrtc(kernel, arch: str) -> str:
    lib = nvrtc()
    program = lib.createProgram(kernel.source, f"{kernel.name}.cu", (), ())
    try:
        lib.compileProgram(program, (f"--gpu-architecture={arch}", "--std=c++17", "--ptxas-options=-v"))
        return lib.getProgramLog(program)
    except Exception as error: pytest.fail(f"{error}\n{lib.getProgramLog(program)}")
    finally: lib.destroyProgram(program)


def by_nvcc(kernel, arch: str, folder) -> str:
    (source := folder / "kernel.cu").write_text(kernel.source)
    command = [NVCC, "-cubin", "-std=c++17", f"-arch={arch}", "-Xptxas", "-v", "-o", str(folder / "kernel.cubin"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.skipif(nvrtc() is None and NVCC is None, reason="no NVRTC (pip install nvidia-cuda-nvrtc) and no nvcc on this machine")
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", list(KERNELS))
def test_compiles_without_spills(name, arch, tmp_path):
    kernel = KERNELS[name]
    check_resources(kernel, resources(by_nvrtc(kernel, arch) if nvrtc() else by_nvcc(kernel, arch, tmp_path)), arch)


def test_sources_need_no_header():
    for kernel in KERNELS.values(): assert "#include" not in kernel.source, kernel.name


def test_every_registered_entry_is_in_its_source():
    for kernel in KERNELS.values():
        expanded = kernel.source.replace("##NAME", "")
        for entry in kernel.entries:
            assert entry in expanded or entry.rsplit("_", 2)[0] in expanded or entry.rsplit("_", 1)[0] in expanded, (kernel.name, entry)
