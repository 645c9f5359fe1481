"""The wheel is whole: built, installed away from the repository, it imports and runs with the data that travelled in it."""
import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.house.notebooks import ROOT


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    "Built from a copy of the tracked tree, so that nothing is left in the repository."
    folder = tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns(".venv", ".git", "build", "dist", "*.egg-info", "out", ".arlm", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, folder/"source", ignore=skip)
    done = subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(folder/"source")],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    "A virtual environment of its own, outside the repository; the dependencies are those of this one."
    folder = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder/"env"], check=True)
    python = folder/"env"/"bin"/"python"
    site = subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True).strip()
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--ignore-installed", "--prefix", folder/"env"]
    subprocess.run([*install, wheel], check=True, capture_output=True)
    ours = [path for path in sys.path if path.endswith("site-packages")]
    with open(os.path.join(site, "dependencies.pth"), "w") as file:
        file.write("import sys; sys.path.extend(" + repr(ours) + ")\n")  # paths only: the .pth files in there are not read
    script = folder/"env"/"bin"/"arlm"
    lines = script.read_text().splitlines()
    script.write_text("\n".join([f"#!{python}", *lines[1:]]) + "\n")
    return folder


def run(installed, *command, timeout=300):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ARLM"))}
    env |= {"XDG_DATA_HOME": str(installed/"home"), "HF_HUB_OFFLINE": "1"}
    program = installed/"env"/"bin"/command[0]
    return subprocess.run([program, *command[1:]], cwd=installed, env=env, capture_output=True, text=True, timeout=timeout)


def test_wheel_has_code_data_and_licence(wheel):
    with zipfile.ZipFile(wheel) as archive: names = set(archive.namelist())
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT/"arlm_nb").rglob("*.py")}
    assert sources <= names
    assert "arlm_nb/_data/catalog.toml" in names and any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "nbs", "tools", "data"))]
    small = [path for path in (ROOT/"data"/"checkpoints").rglob("*.safetensors") if path.stat().st_size <= 5_000_000]
    assert {f"arlm_nb/_data/{path.relative_to(ROOT/'data').as_posix()}" for path in small} <= names
    others = [path for folder in ("tasks", "") for path in (ROOT/"data"/folder).glob("*.*") if path.stat().st_size <= 5_000_000]
    assert {f"arlm_nb/_data/{path.relative_to(ROOT/'data').as_posix()}" for path in others} <= names


def test_import_alone(installed):
    code = "import arlm_nb, arlm_nb.core.paths as p; print(arlm_nb.__file__, p.repo_root(), p.data_path('catalog.toml'))"
    done = run(installed, "python", "-c", code)
    assert done.returncode == 0, done.stderr
    where, root, data = done.stdout.split()
    assert str(installed) in where and root == "None" and str(installed) in data


def test_list_and_show_alone(installed):
    done = run(installed, "arlm", "list")
    assert done.returncode == 0 and len(done.stdout.splitlines()) > 100, done.stderr
    assert run(installed, "arlm", "show", "tuned_lens").returncode == 0
    done = run(installed, "arlm", "paper", "tuned_lens")
    assert done.returncode == 2 and "installed from a wheel" in done.stderr


@pytest.mark.skipif(not (ROOT/"arlm_nb"/"tour.py").exists(), reason="arlm_nb.tour is not there yet")
def test_tour_alone(installed):
    done = run(installed, "arlm", "tour", "--out", str(installed/"tour.html"), timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert (installed/"tour.html").stat().st_size > 10_000


def pins() -> dict[str, str]:
    lines = [line.split(";")[0].strip() for line in (ROOT/"constraints.txt").read_text().splitlines() if line.strip() and line[0] != "#"]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "a pin is name==version, without a local version"
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in (line.split("==") for line in lines)}


def test_every_dependency_is_pinned():
    "Also the indirect ones: the closure of what is installed here."
    from importlib.metadata import PackageNotFoundError, requires
    from packaging.requirements import Requirement
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT/"settings.ini")
    settings = config["DEFAULT"]
    keys = ("requirements", "gpu_requirements", "scale_requirements", "dev_requirements")
    asked = [name for key in keys for name in settings[key].split()]
    pinned, seen, queue = pins(), set(), [(Requirement(text), "") for text in asked]
    while queue:
        requirement, extra = queue.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}): continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in seen: continue
        seen.add(name)
        assert name in pinned, f"{name} is needed and not in constraints.txt"
        assert requirement.specifier.contains(pinned[name], prereleases=True), f"{requirement} does not admit {pinned[name]}"
        try: wanted = requires(name) or []
        except PackageNotFoundError: continue
        for extra in requirement.extras or {""}: queue += [(Requirement(text), extra) for text in wanted]
    assert pinned["torch"] == "2.13.0" and pinned["nbdev"] == "2.4.14"


def test_installed_versions_are_the_pinned_ones():
    from importlib.metadata import PackageNotFoundError, version
    different = {}
    for name, wanted in pins().items():
        try: found = version(name).split("+")[0]
        except PackageNotFoundError: continue
        if found != wanted: different[name] = (found, wanted)
    assert not different, f"(installed, pinned): {different}"
