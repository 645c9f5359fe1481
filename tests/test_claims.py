"""Claims in fresh processes: one that fails or crashes leaves the others alone, and what was measured is on disk at once."""
import json
import os
import sys

import pytest

from arlm_nb.core import claims as module
from arlm_nb.core.claims import claims, run_claims, save_claim

SOURCE = '''
import os
from arlm_nb.core.claims import Measured, claim

@claim("{key}", paper="p", threshold="t")
def measure(seed=0):
    {body}
'''
BODIES = {
    "good": "return Measured(ours=2.0 + seed, baseline=1.0, unit='x', holds=True, ablation=1.0, interval=(1.5, 2.5))",
    "bad": "return [Measured(ours=1.0, holds=True, name='one'), Measured(ours=0.0, holds=False, name='two')]",
    "context": "return [Measured(ours=1.0, holds=True, name='one'), Measured(ours=0.0, holds=None, name='two')]",
    "nothing": "return Measured(ours=1.0, holds=None)",
    "raising": "raise KeyError('lost')",
    "crashing": "os._exit(7)",
    "nan": "return Measured(ours=float('nan'))",
    "hanging": "import time; time.sleep(60)",
}


@pytest.fixture
def planted(tmp_path, monkeypatch):
    "Modules with claims, found where the package's own are looked for."
    for key, body in BODIES.items(): (tmp_path/f"planted_{key}.py").write_text(SOURCE.format(key=key, body=body))
    (tmp_path/"planted_broken.py").write_text("import no_such_module_anywhere\n")
    found = {key: f"planted_{key}" for key in [*BODIES, "broken"]}
    monkeypatch.setattr(module, "claim_modules", lambda: found)
    child = f"import arlm_nb.core.claims as c\nc.claim_modules = lambda: {found!r}\n" + module._CHILD
    monkeypatch.setattr(module, "_CHILD", child)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for key in found: module._CLAIMS.pop(key, None)


def test_each_claim_in_its_own_process(planted):
    path = planted/"claims.json"
    save_claim("older", {"state": "holds"}, path)
    seen = []
    for key, entry in run_claims(["raising", "good", "crashing", "bad", "context", "nothing", "nan", "broken", "hanging"], seed=3, limit=20, path=path):
        assert json.loads(path.read_text())[key] == entry  # written before the next one starts
        seen.append((key, entry["state"]))
    assert seen == [("raising", "error"), ("good", "holds"), ("crashing", "error"), ("bad", "not reproduced"), ("context", "holds"),
                    ("nothing", "error"), ("nan", "error"), ("broken", "error"), ("hanging", "error")]
    kept = json.loads(path.read_text())
    assert kept["older"] == {"state": "holds"}
    good = kept["good"]["measured"][0]
    numbers = {"ours": 5.0, "baseline": 1.0, "ablation": 1.0, "interval": [1.5, 2.5]}
    assert good == numbers | {"unit": "x", "holds": True, "notes": "", "name": ""}
    assert kept["good"]["seed"] == 3 and kept["good"]["paper"] == "p" and kept["good"]["versions"]["torch"]
    assert "lost" in kept["raising"]["error"] and "exit code 7" in kept["crashing"]["error"] and "20 s" in kept["hanging"]["error"]
    assert [m["holds"] for m in kept["context"]["measured"]] == [True, None] and "could fail" in kept["nothing"]["error"]
    assert "finite" in kept["nan"]["error"] and "no_such_module_anywhere" in kept["broken"]["error"]


def test_unknown_claim_stops_before_anything_runs(planted):
    with pytest.raises(ValueError, match="nearest: good"): next(run_claims(["good", "goood"], path=planted/"claims.json"))
    assert not (planted/"claims.json").exists()


def test_interrupt_keeps_the_file(planted, monkeypatch):
    path = planted/"claims.json"
    runs = run_claims(["good", "bad"], path=path)
    next(runs)

    def interrupted(*_): raise KeyboardInterrupt
    monkeypatch.setattr(module, "run_fresh", interrupted)
    with pytest.raises(KeyboardInterrupt): next(runs)
    assert list(json.loads(path.read_text())) == ["good"]


def test_every_claim_of_the_package_belongs_to_the_catalog():
    from arlm_nb.core.catalog import catalog
    assert set(claims()) <= set(catalog()) | {key for key in claims() if key.startswith("_")}
