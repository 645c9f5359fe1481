"""Build: the metadata comes from settings.ini (nbdev's one source), the data files from data/."""
import configparser
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
SMALL = 5_000_000  # bytes; larger checkpoints stay in data/ and are said how to get
config = configparser.ConfigParser(delimiters=["="])
config.read(HERE/"settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]


def travelling(data: Path) -> list[Path]:
    "The data files that go into the wheel: all that are small; of a checkpoint all of its files or none. Benchmarks stay here."
    parts = {path: path.relative_to(data).parts for path in sorted(data.rglob("*")) if path.is_file()}
    files = [path for path, names in parts.items() if names[0] != "benchmarks" and not any(name.startswith(".") for name in names)]
    large = {whole(path, data) for path in files if path.stat().st_size > SMALL}
    return [path for path in files if whole(path, data) not in large]


def whole(path: Path, data: Path) -> Path:
    "What a file is a part of: a checkpoint's folder, or nothing but itself."
    return path.parent if data/"checkpoints" in path.parent.parents else path


class BuildWithData(build_py):
    "Copies the travelling data files into arlm_nb/_data of what is built (an editable install reads data/ itself)."

    def run(self):
        super().run()
        if self.editable_mode: return
        target = Path(self.build_lib)/cfg["lib_path"]/"_data"
        if target.exists(): shutil.rmtree(target)
        for path in travelling(HERE/"data"):
            copy = target/path.relative_to(HERE/"data")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def requirements(key: str) -> list[str]:
    return cfg.get(key, "").split()


extras = {name: requirements(f"{name}_requirements") for name in ("gpu", "scale", "peers", "dev")}
setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(HERE/"README.md").read_text(encoding="utf-8") if (HERE/"README.md").exists() else cfg["description"],
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    keywords=cfg["keywords"].split(),
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=[cfg["lib_path"], f"{cfg['lib_path']}.*"]),
    package_dir={"": "."},
    python_requires=f">={cfg['min_python']}",
    install_requires=requirements("requirements"),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    cmdclass={"build_py": BuildWithData},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    zip_safe=False,
)
