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


@pytest.mark.skipif(NVCC is None, reason="no nvcc on this machine")
@pytest.mark.parametrize("name", list(KERNELS))
def test_compiles_without_spills(name, tmp_path):
    kernel = KERNELS[name]
    (source := tmp_path / "kernel.cu").write_text(kernel.source)
    arch = [f for a in ARCHITECTURES for f in ("-gencode", f"arch=compute_{a[3:]},code={a}")]
    done = subprocess.run(
        [NVCC, "-fatbin", "-std=c++17", *arch, "-Xptxas", "-v", "-o", str(tmp_path / "kernel.fatbin"), str(source)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for a in ARCHITECTURES:
        log = "\n".join(b for b in re.split(r"(?=ptxas info\s+: Compiling entry function)", done.stderr) if f"for '{a}'" in b)
        found = resources(log)
        assert set(found) == set(kernel.entries), (a, set(kernel.entries) ^ set(found))
        for entry, r in found.items():
            print(f"{a} {entry}: {r}")
            assert r["spills"] == 0, (a, entry, r)
            assert r["registers"] <= 128, (a, entry, r)


@pytest.mark.skipif(nvrtc() is None, reason="NVRTC is not installed (pip install nvidia-cuda-nvrtc)")
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", list(KERNELS))
def test_compiles_by_nvrtc(name, arch):
    kernel, lib = KERNELS[name], nvrtc()
    program = lib.createProgram(kernel.source, f"{name}.cu", (), ())
    try: lib.compileProgram(program, (f"--gpu-architecture={arch}", "--std=c++17"))
    except Exception as error: pytest.fail(f"{error}\n{lib.getProgramLog(program)}")
    finally: lib.destroyProgram(program)


def test_sources_need_no_header():
    for kernel in KERNELS.values(): assert "#include" not in kernel.source, kernel.name


def test_every_registered_entry_is_in_its_source():
    for kernel in KERNELS.values():
        expanded = kernel.source.replace("##NAME", "")
        for entry in kernel.entries:
            assert entry in expanded or entry.rsplit("_", 2)[0] in expanded or entry.rsplit("_", 1)[0] in expanded, (kernel.name, entry)
