"""What is predicted of widths: fitted in the search, journaled with its error, and never a figure of the front."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import paretoprune as pp
from paretoprune.pipeline import artefact, cost_model, reporting
from paretoprune.store.run import RunFolder

RATIO = {"layers": 0.75, "elements": 0.25}


@pytest.fixture
def fitted(
    searching: Callable[..., pp.Front], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., RunFolder]:
    """A search whose networks cost what a formula says of them."""
    monkeypatch.setattr(cost_model, "LEVELS", (0.25, 0.5, 0.75))
    monkeypatch.setattr(cost_model, "WORTH", 0)
    rows: list[dict[str, Any]] = []
    real_layers, real_elements = cost_model.CostModel.share_in, cost_model.elements_share

    def remembered(self: Any, precision: str, widths: Any) -> Any:
        rows.append({"layers": real_layers(self, precision, widths), "elements": real_elements(self.traced, widths)})
        return rows[-1]["layers"]

    def measured(*given: Any) -> dict[str, float]:
        share = sum(RATIO[k] * rows[-1][k] for k in RATIO)
        return {"latency_ms": share, "energy_mj": share}

    def run(**options: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(cost_model.CostModel, "share_in", remembered)
            patch.setattr(cost_model, "_measured", measured)
            searching(**options)
        return RunFolder.read(tmp_path / "run")

    return run


def test_it_is_fitted_to_whole_networks_and_its_error_is_told(fitted: Callable[..., Any], tmp_path: Path) -> None:
    view = fitted()
    found = view.done("cost model", "fit")
    assert len(found["points"]) == 4
    for metric in ("latency_ms", "energy_mj"):
        correction = found["corrections"][metric]["fp32"]
        assert correction["layers"] == pytest.approx(RATIO["layers"], rel=1e-6)
        assert correction["error"] == pytest.approx(0, abs=1e-6)
    assert sum(s["stage"] == "cost model" for s in view.all("seconds").values()) == 1

    front = pp.read_front(tmp_path / "run")
    (said,) = [n for n in reporting.notes(view, front) if "cost model" in n]
    assert said.startswith("cost model (fp32): median error 0.0% on 4 networks")
    assert said.endswith("never shown as a result")
    assert {c.name for c in front.candidates} == {"original", "c01-fp32", "c02-fp32"}

    how = [entry["how"] for entry in view.all("export").values()]
    assert how.count("cut") > how.count("full") > 0


def test_a_network_that_cannot_be_exported_is_left_out(
    fitted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = artefact.export

    def export(study: Any, name: str, *rest: Any, **how: Any) -> None:
        if name.startswith("cost model 2"):
            raise pp.errors.TargetError("not this one")
        real(study, name, *rest, **how)

    monkeypatch.setattr(artefact, "export", export)
    view = fitted()
    assert view.done("cost model", "fit")["corrections"]["latency_ms"]["fp32"]["networks"] == 3
    assert view.done("left out", "cost model 2-fp32")["cause"] == "not this one"
