"""Shared settings: one thread, reproducible examples, and where the data is."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before numpy and torch are imported: the machine's cores are shared, and one thread is what is measured.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

os.environ["PARETOPRUNE_CACHE"] = "off"  # what the user has measured is not the tests' to read or to change

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


if importlib.util.find_spec("torchvision"):  # after `make zoo`; transformers imports it, and it needs its operators
    from zoo.networks.entry import torchvision_operators

    torchvision_operators()


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of costs for the processes that tests start: what one has measured, no other measures again."""
    base = tmp_path_factory.getbasetemp()
    return str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "costs")


_LONGEST = ("faults/test_cli.py", "graph/test_random_", "cli/", "graph/test_rules_attention.py")
"""Files that take longest: they start first, so that no worker is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        return next((i for i, start in enumerate(_LONGEST) if file.startswith(start)), len(_LONGEST))

    items.sort(key=rank)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets; skips where there is none."""
    given = os.environ.get("PARETOPRUNE_DATA")
    if not given:
        pytest.skip("PARETOPRUNE_DATA is unset: set it to the folder that holds cifar10_jpeg75.npz and the others")
    folder = Path(given).resolve()
    if not folder.is_dir():
        pytest.fail(f"PARETOPRUNE_DATA={given!r} is not a folder")
    return folder
