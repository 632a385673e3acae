"""The results as a table in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
TITLES = {"inner": '`axes="inner"`', "all": '`axes="all"`'}
HEAD = (
    "network",
    "capture, s",
    "axes, s",
    "surgery, s",
    "prunable of axes",
    "parameters cut",
    "result",
    "error",
    "output",
    "trains",
    "reloads",
    "ONNX",
)


def markdown(result: Mapping[str, Any]) -> str:
    rows = result["rows"]
    parts = ["# The zoo", "", INTRODUCTION, ""]
    machine, versions = result["machine"], result["versions"]
    parts += [
        f"Made by `make zoo` (`{result['command'].strip()}`) at commit {_commits(result)} on {machine['cpu']}, one "
        f"thread, with {', '.join(f'{n} {v}' for n, v in versions.items())}. Raw rows: `benchmarks/results/zoo.json`.",
        "",
        summary(rows),
        "",
    ]
    for kind, title in TITLES.items():
        mine = [r for r in rows if r["kind"] == kind]
        if mine:
            parts += [f"## {title}", "", *lines(HEAD, map(cells, mine)), "", *reasons(mine)]
    peer = [r for r in rows if r["kind"] == "peer"]
    if peer:
        version = versions.get("torch-pruning", "")
        head = ("network", "seconds", "parameters cut", "result", "error", "why")
        parts += [f"## Torch-Pruning {version}", "", PEER, "", *lines(head, map(peer_cells, peer)), ""]
    return "\n".join(parts).rstrip() + "\n"


def _commits(result: Mapping[str, Any]) -> str:
    """Most rows first."""
    found = Counter(r.get("commit", result["commit"]) for r in result["rows"]).most_common()
    return " and ".join(f"`{name}`" + (f" ({n} rows)" if len(found) > 1 else "") for name, n in found)


INTRODUCTION = """\
Half of every axis is removed from every network, with random weights in double precision, and the result is compared
at another batch size with an independent reference: the user's own Python forward in which every entry that was not
kept is zero and normalisations take their statistics over what was kept. The reference knows nothing of our graph; it
gets the names of parameters and the indices that stayed. *exact*: the largest difference is below 1e-8 of the output's
scale. *wrong*: it is not, and nobody was told. *refused*: an error said why. `make zoo` prints every network in turn;
`python -m zoo --only 'timm/*' --axes inner` takes a part."""

PEER = """\
The same networks, half of the channels by magnitude, told nothing but the layers that make the outputs. It reports no
indices, so what it kept is read off the values (every entry is another number) and goes through the same reference.
*exact*: below 1e-6 of the output's scale. *wrong*: a result came back that is not. *crash*: an error in it, or in the
forward of what it gave back. *nothing*: less than 1 % was removed. The limit is 150 s of CPU time."""


def lines(head: Sequence[str], rows: Any) -> list[str]:
    rule = ["---" if i == 0 else "---:" if i < len(head) else "---" for i in range(len(head))]
    return [_line(head), _line(rule), *(_line(r) for r in rows)]


def _line(values: Sequence[str]) -> str:
    return "| " + " | ".join(v.replace("|", "\\|") for v in values) + " |"


def cells(row: Row) -> list[str]:
    def seconds(key: str) -> str:
        return f"{row[key]:.2f}" if key in row else ""

    return [
        row["network"],
        seconds("capture_s"),
        seconds("axes_s"),
        seconds("surgery_s"),
        f"{row['prunable']} of {row['axes']}" if "axes" in row else "",
        f"{row['cut']:.0%}" if "cut" in row else "",
        row["status"],
        f"{row['error']:.0e}" if "error" in row else "",
        row.get("output", ""),
        *(_yes(row.get(key)) for key in ("trains", "reloads", "onnx")),
    ]


def _yes(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str) and value.startswith("nor does the original"):
        return "(original neither)"
    return "yes" if value is True else "no"


def peer_cells(row: Row) -> list[str]:
    seconds = f"{row.get('seconds', row.get('wall_s', 0.0)):.1f}"
    cut, error = (f"{row['cut']:.0%}" if "cut" in row else ""), (f"{row['error']:.0e}" if "error" in row else "")
    return [row["network"], seconds, cut, row["status"], error, row.get("why", "")[:100]]


def reasons(rows: Sequence[Row]) -> list[str]:
    """What is not exact, with its reason, and what is not yes."""
    found = [f"- {r['network']}: {r['status']}, {r.get('why', '')[:400]}" for r in rows if r["status"] != "exact"]
    for key, title in (("trains", "training"), ("reloads", "saving"), ("onnx", "ONNX")):
        found += [f"- {r['network']}: {title}: {r[key][:240]}" for r in rows if isinstance(r.get(key), str)]
    return [*found, ""] if found else []


def summary(rows: Sequence[Row]) -> str:
    parts = []
    for kind in ("inner", "all", "peer"):
        mine = [r for r in rows if r["kind"] == kind]
        if not mine:
            continue
        status = Counter(r["status"] for r in mine)
        told = ", ".join(f"{n} {s}" for s, n in status.most_common())
        label = "Torch-Pruning" if kind == "peer" else f"axes={kind}"
        text = f"{label}: {len(mine)} networks: {told}"
        if kind != "peer":
            enough = sum(r.get("cut", 0) >= 0.2 and r["status"] == "exact" for r in mine)
            quick = sum(r.get("axes_s", 99) < 10 for r in mine)
            own = sum(r.get("output") == "class" for r in mine)
            text += f"; {enough} with at least 20 % cut; {own} in the user's class; axes below 10 s for {quick}"
        parts.append(f"- {text}")
    return "\n".join(parts)
