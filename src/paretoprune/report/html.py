"""One self-contained page: works offline, fetches nothing, runs only the scripts whose hashes it carries."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from contextlib import suppress
from importlib import resources
from pathlib import Path

from paretoprune.core.errors import StoreError
from paretoprune.report import view
from paretoprune.report.cuts import cuts as plan_cuts
from paretoprune.report.data import ReportData
from paretoprune.report.payload import script_data
from paretoprune.report.picture import panels
from paretoprune.report.svg import draw
from paretoprune.report.text import clean, clean_lines, duration

_TEMPLATES = "templates"


def write_report(data: ReportData, path: Path) -> Path:
    """Write the page beside its final name, then move it there: a reader never meets half a page.

    Raises StoreError where the folder cannot be written to.
    """
    page = render(data).encode("utf-8")
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_bytes(page)
        scratch.replace(path)
    except OSError as e:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise StoreError(
            f"cannot write the report to {path}: {e.strerror}; choose a folder with room and access"
        ) from e
    return path.resolve()


def render(data: ReportData) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("paretoprune.report", _TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn, table, cuts = panels(data), view.rows(data), plan_cuts(data)
    scripts = (_script(_plotly()), _script(_packaged("report.js")))
    return environment.get_template("report.html.j2").render(
        title=clean(data.title),
        data=data,
        facts=data.facts,
        policy=_policy(scripts),
        # Marked as markup: our own packaged files and plotly's, never anything from the run.
        style=Markup(_packaged("report.css")),
        plotly=Markup(scripts[0]),
        script=Markup(scripts[1]),
        payload=script_data(data, table, drawn),
        drawings=tuple(draw(panel) for panel in drawn),
        columns=view.columns(data),
        rows=table,
        quality=view.quality(data),
        disturbances=view.disturbances(data),
        absent=view.absent(data),
        precisions=view.precisions(data),
        tiles=view.tiles(data),
        cuts=cuts,
        plan_of={i: cut.rows[0] for cut in cuts for i in cut.rows},
        stages=view.stage_bars(data.facts.stages),
        clean=clean,
        clean_lines=clean_lines,
        duration=duration,
    )


def _packaged(name: str) -> str:
    return resources.files("paretoprune.report").joinpath(_TEMPLATES, name).read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _script(text: str) -> str:
    """Script text that cannot end its own element, with line ends as a browser normalises them before it hashes."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"<(/script|!--)", r"<\\\1", lines, flags=re.IGNORECASE)


def _policy(scripts: tuple[str, ...]) -> str:
    """A content security policy: these scripts, our styles, no network. Plotly sets style attributes."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; " + (
        "base-uri 'none'; form-action 'none'"
    )
