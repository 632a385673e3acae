"use strict";
(function () {
  const payload = JSON.parse(document.getElementById("payload").textContent);
  const rows = payload.rows;
  const panels = payload.panels;
  const bodyRows = new Map();
  document.querySelectorAll("tr[data-row]").forEach((tr) => bodyRows.set(Number(tr.dataset.row), tr));
  const plot = document.getElementById("plot");
  const state = { panel: 0, close: false, picked: null };

  // --- the table: sorting -------------------------------------------------------------------------------------

  function compare(a, b, sign) {
    const emptyA = a === "";
    const emptyB = b === "";
    if (emptyA || emptyB) return emptyA - emptyB; // what was not taken comes last, either way
    const x = Number(a);
    const y = Number(b);
    if (!Number.isNaN(x) && !Number.isNaN(y)) return sign * (x - y);
    return sign * a.localeCompare(b, "en", { numeric: true });
  }

  function sortBy(header) {
    const table = header.closest("table");
    const column = header.cellIndex;
    const first = header.hasAttribute("data-down") ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = header.getAttribute("aria-sort") === first ? other : first;
    table.querySelectorAll("th[aria-sort]").forEach((th) => th.setAttribute("aria-sort", "none"));
    header.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const body = table.tBodies[0];
    const key = (tr) => tr.cells[column].dataset.sort;
    Array.from(body.rows).sort((a, b) => compare(key(a), key(b), sign)).forEach((tr) => body.append(tr));
  }

  document.querySelectorAll(".candidates thead th:not(.pick)").forEach((th) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.textContent = th.firstChild.textContent.trim(); // a mark such as "estimated" stays beside the button
    th.firstChild.remove();
    button.addEventListener("click", () => sortBy(th));
    th.prepend(button);
    th.setAttribute("aria-sort", "none");
  });

  // --- choosing a row, in the table or in the picture ---------------------------------------------------------

  function pick(number) {
    state.picked = state.picked === number ? null : number;
    bodyRows.forEach((tr, key) => {
      const on = key === state.picked;
      tr.classList.toggle("picked-row", on);
      const button = tr.querySelector("td.pick button");
      if (button) button.setAttribute("aria-pressed", String(on));
    });
    const said = document.getElementById("picked");
    if (said) said.textContent = state.picked === null ? "Nothing is chosen in the picture." : sentence(rows[number]);
    if (plot && plot.data) ring();
  }

  function sentence(row) {
    const marks = [row.label, row.front ? "on the front" : "not on the front", row.meets ? "" : "misses a limit"];
    return row.name + ", " + row.precision + ": " + row.lines.concat(marks.filter(Boolean)).join(" · ");
  }

  function openTarget() {
    const target = location.hash.startsWith("#cut-") && document.getElementById(location.hash.slice(1));
    if (target) target.open = true;
  }
  window.addEventListener("hashchange", openTarget);
  openTarget();

  // Everything is open on paper; afterwards it is as it was.
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = Array.from(document.querySelectorAll("details:not([open])"));
    closed.forEach((d) => { d.open = true; });
  });
  window.addEventListener("afterprint", () => closed.forEach((d) => { d.open = false; }));

  if (!plot || typeof Plotly === "undefined") return;

  bodyRows.forEach((tr, number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "◎";
    button.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-label", "Show " + rows[number].name + " in the picture");
    button.addEventListener("click", () => pick(number));
    tr.querySelector("td.pick").append(button);
  });

  // --- the picture --------------------------------------------------------------------------------------------

  const SYMBOLS = ["circle", "triangle-up", "square", "triangle-down"];
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // Plotly reads a small markup in its texts: names must not.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function hover(row) {
    const head = row.name.length > 60 ? row.name.slice(0, 59) + "…" : row.name;
    const marks = [row.label, row.chosen ? "chosen" : "", row.front ? "on the front" : "not on the front"];
    const last = marks.concat(row.meets ? [] : ["misses a limit"]).filter(Boolean).join(", ");
    return ["<b>" + plain(head) + "</b> " + plain(row.precision), ...row.lines.map(plain), plain(last)].join("<br>");
  }

  function bars(points, axis, color) {
    const spans = points.map((p) => p[axis + "s"] || [p[axis], p[axis]]);
    return {
      type: "data", symmetric: false, color: color, thickness: 1, width: 3,
      array: spans.map((s, i) => s[1] - points[i][axis]),
      arrayminus: spans.map((s, i) => points[i][axis] - s[0]),
    };
  }

  function group(row) {
    if (row.kind !== "pruned") return row.kind === "original" ? "original" : "original in " + row.precision;
    return row.precision + (row.front ? ", on the front" : ", off the front");
  }

  function markers(points, name) {
    const all = points.map((p) => rows[p.row]);
    const faded = all[0].kind === "pruned" && !all[0].front;
    const color = css("--c" + all[0].color);
    const unpruned = all[0].kind !== "pruned";
    const symbol = unpruned ? "diamond" : SYMBOLS[all[0].color];
    return {
      type: "scatter", mode: "markers", name: plain(name), opacity: faded ? Number(css("--fade")) : 1,
      x: points.map((p) => p.x), y: points.map((p) => p.y),
      error_x: bars(points, "x", color), error_y: bars(points, "y", color),
      customdata: points.map((p) => p.row), hoverinfo: "text", text: all.map(hover),
      marker: {
        color: all.map((row) => (row.meets ? color : css("--raised"))), size: unpruned ? 14 : 10, line: { width: 1.8, color: color },
        symbol: symbol,
      },
    };
  }

  function traces(panel) {
    const groups = new Map();
    panel.points.forEach((p) => {
      const name = group(rows[p.row]);
      groups.set(name, (groups.get(name) || []).concat([p]));
    });
    const line = {
      type: "scatter", mode: "lines", name: "front", x: panel.steps.map((s) => s[0]), y: panel.steps.map((s) => s[1]),
      hoverinfo: "skip", line: { color: css("--ink"), width: 1.5 }, opacity: 0.55,
    };
    return [line, ...Array.from(groups, ([name, points]) => markers(points, name)),
      rings(panel, "chosen", (row) => row.chosen, css("--chosen"), 22),
      rings(panel, "picked", (row, i) => i === state.picked, css("--accent"), 28)];
  }

  function rings(panel, name, test, color, size) {
    const points = panel.points.filter((p) => test(rows[p.row], p.row));
    return {
      type: "scatter", mode: "markers", name: name, x: points.map((p) => p.x), y: points.map((p) => p.y),
      hoverinfo: "skip", showlegend: name === "chosen" && points.length > 0,
      marker: { symbol: "circle-open", size: size, color: color, line: { width: 2.2 } },
    };
  }

  function limitLine(vertical, at) {
    const shape = { type: "line", line: { color: css("--limit"), width: 1.3, dash: "dash" } };
    shape.label = { text: "limit", textposition: vertical ? "start" : "end", textangle: 0, font: { color: css("--limit"), size: 12 } };
    shape.label.xanchor = "right";
    if (!vertical) shape.label.yanchor = "top";
    return Object.assign(shape, vertical
      ? { xref: "x", yref: "paper", x0: at, x1: at, y0: 0, y1: 1 }
      : { xref: "paper", yref: "y", x0: 0, x1: 1, y0: at, y1: at });
  }

  function labels(panel) {
    const bend = (x) => (panel.log ? Math.log10(x) : x);
    const middle = (bend(panel.xRange[0]) + bend(panel.xRange[1])) / 2;
    return panel.points.filter((p) => rows[p.row].kind !== "pruned" || rows[p.row].chosen).map((p) => {
      const row = rows[p.row];
      const text = row.kind === "original" ? "original" : row.kind === "unpruned" ? group(row) : row.name.slice(0, 24);
      const left = bend(p.x) > middle;
      return {
        x: bend(p.x), y: p.y, text: plain(text), showarrow: false, xanchor: left ? "right" : "left",
        xshift: left ? -13 : 13, yshift: row.chosen ? -14 : 13, font: { size: 12, color: css("--ink") }, bgcolor: plot.clientWidth < 560 ? "rgba(0,0,0,0)" : css("--raised"), opacity: 0.88,
      };
    });
  }

  /** The ranges of the whole picture, or those of the front, the chosen one and the originals. */
  function ranges(panel) {
    if (!state.close) return { x: panel.xRange, y: panel.yRange };
    const near = panel.points.filter((p) => rows[p.row].front || rows[p.row].chosen);
    if (!near.length) return { x: panel.xRange, y: panel.yRange };
    const span = (axis, log) => {
      const all = near.flatMap((p) => [p[axis]].concat(p[axis + "s"] || []));
      const ends = [Math.min(...all), Math.max(...all)];
      if (log) {
        const pad = Math.pow(ends[1] / ends[0], 0.1);
        return [ends[0] / pad, ends[1] * pad];
      }
      const pad = 0.1 * (ends[1] - ends[0]) || 0.05 * Math.abs(ends[1]) || 1;
      return [ends[0] - pad, ends[1] + pad];
    };
    return { x: span("x", panel.log), y: span("y", false) };
  }

  function layout(panel) {
    const range = ranges(panel);
    const axis = { gridcolor: css("--grid"), linecolor: css("--rule"), zeroline: false, ticks: "", automargin: true };
    const family = getComputedStyle(document.body).fontFamily;
    const small = plot.clientWidth < 560;
    const shapes = [];
    if (panel.xLimit !== null) shapes.push(limitLine(true, panel.xLimit));
    if (panel.yLimit !== null) shapes.push(limitLine(false, panel.yLimit));
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: small ? false : "zoom",
      font: { family: family, size: 13, color: css("--soft") },
      margin: { l: small ? 48 : 64, r: 16, t: small ? 12 : 30, b: 48 },
      xaxis: Object.assign({}, axis, {
        title: { text: plain(panel.title) }, type: panel.log ? "log" : "linear",
        range: panel.log ? range.x.map(Math.log10) : range.x, tickformat: panel.log ? "~r" : "",
        dtick: panel.log ? "D2" : undefined,
      }),
      yaxis: Object.assign({}, axis, { title: { text: "accuracy (%)" }, range: range.y }),
      legend: { orientation: "h", x: 0, y: -0.2, yanchor: "top", font: { color: css("--ink"), size: 12 } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent") }, shapes: shapes, annotations: labels(panel), hovermode: "closest", clickmode: "event",
      hoverlabel: { align: "left", bgcolor: css("--raised"), bordercolor: css("--soft"), font: { color: css("--ink"), size: 13, family: family } },
    };
  }

  const config = {
    displaylogo: false, responsive: true, scrollZoom: false, doubleClick: "reset",
    modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "resetScale2d"]],
  };

  function draw() {
    const panel = panels[state.panel];
    return Plotly.react(plot, traces(panel), layout(panel), Object.assign({ displayModeBar: plot.clientWidth >= 560 }, config));
  }

  function ring() {
    const panel = panels[state.panel];
    const found = panel.points.filter((p) => p.row === state.picked);
    Plotly.restyle(plot, { x: [found.map((p) => p.x)], y: [found.map((p) => p.y)] }, [plot.data.length - 1]);
  }

  document.querySelectorAll("[data-panel]").forEach((button) => button.addEventListener("click", () => {
    state.panel = Number(button.dataset.panel);
    document.querySelectorAll("[data-panel]").forEach((b) => b.setAttribute("aria-pressed", String(b === button)));
    draw();
  }));
  const zoom = document.getElementById("zoom");
  zoom.addEventListener("click", () => {
    state.close = !state.close;
    zoom.setAttribute("aria-pressed", String(state.close));
    draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  document.getElementById("live").hidden = false;
  document.documentElement.classList.add("live");
  draw().then(() => plot.on("plotly_click", (event) => {
    const number = event.points[0].customdata;
    if (typeof number === "number") pick(number);
  }));
})();
