"""Offline for every test, the notebooks run beside the rest, and the ten slowest of them are named at the end."""
import os

for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

try: from hypothesis import settings
except ImportError: pass  # a GPU machine's own Python may lack it; its tests do without
else:  # the same examples on every run; ARLM_EXPLORE=1 draws new ones
    settings.register_profile("same", derandomize=True, deadline=None)
    settings.register_profile("explore", deadline=None, print_blob=True)
    settings.load_profile("explore" if os.environ.get("ARLM_EXPLORE") else "same")


def pytest_collection_modifyitems(items):
    "The repository's own checks first, they are cheap; the notebooks last: they run beside the other tests from the start."
    items.sort(key=lambda item: 2 if getattr(item, "originalname", "") == "test_notebook_runs" else "house" not in item.path.parts)


def pytest_collection_finish(session):
    pool = session.config.stash.get(_pool(), None)
    if pool is None or session.config.option.collectonly: return
    pool.start([item.callspec.params["notebook"] for item in session.items if item.originalname == "test_notebook_runs"])


def pytest_terminal_summary(terminalreporter, config):
    pool = config.stash.get(_pool(), None)
    if pool is None or not pool.seconds: return
    slowest = sorted(pool.seconds.items(), key=lambda entry: -entry[1])[:10]
    terminalreporter.section(f"the {len(slowest)} slowest of {len(pool.seconds)} notebooks")
    for notebook, seconds in slowest: terminalreporter.write_line(f"{seconds:7.1f} s  {notebook}")


def pytest_configure(config):
    from tests.house.notebooks import Pool
    config.stash[_pool()] = Pool()


def pytest_unconfigure(config):
    pool = config.stash.get(_pool(), None)
    if pool is not None: pool.stop()


def _pool():
    from tests.house.notebooks import POOL
    return POOL
