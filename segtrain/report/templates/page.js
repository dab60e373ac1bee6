"use strict";
(() => {
  const { charts, words } = JSON.parse(document.getElementById("data").textContent);
  // A finger that scrolls the page would zoom the chart under it.
  const touch = matchMedia("(pointer: coarse)").matches;
  const settings = {
    responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover",
    modeBarButtonsToRemove: ["lasso2d", "autoScale2d"],
  };

  function draw(name) {
    const div = document.getElementById(name);
    const { data, layout } = charts[name];
    for (const trace of data) {
      if ((trace.hovertemplate || "").includes("%{text}") && trace.customdata) {
        trace.text = trace.customdata.map((number) => words[number]);
      }
    }
    if (touch) layout.dragmode = false;
    const axes = (layout.annotations || []).filter((note) => note.yanchor === "bottom").length;
    if (name === "parallel") div.style.minWidth = `${axes * 118}px`;
    return Plotly.newPlot(div, data, layout, settings);
  }

  // Trials inside every selection; boxes over the same axis add up, over several axes all have to hold.
  function selected(points) {
    const byAxis = new Map();
    for (const point of points) {
      if (point.customdata === undefined) continue;
      if (!byAxis.has(point.x)) byAxis.set(point.x, new Set());
      byAxis.get(point.x).add(point.customdata);
    }
    const [first, ...others] = byAxis.values();
    return first && new Set([...first].filter((trial) => others.every((one) => one.has(trial))));
  }

  function show(div, heights, kept) {
    const y = div.data.map((trace, k) =>
      trace.customdata && kept ? heights[k].map((one, i) => (kept.has(trace.customdata[i]) ? one : null)) : heights[k]);
    Plotly.restyle(div, { y, selectedpoints: y.map(() => null) });
    for (const row of document.querySelectorAll("#leaderboard tbody tr")) {
      row.classList.toggle("filtered", Boolean(kept) && !kept.has(Number(row.dataset.trial)));
    }
  }

  function filterBySelection(div) {
    const heights = div.data.map((trace) => trace.y);
    // What a first box took out cannot be in a second one, so boxes are judged by all trials' places.
    const inside = (box) => {
      const [left, right] = [box.x0, box.x1].sort((a, b) => a - b);
      const [low, high] = [box.y0, box.y1].sort((a, b) => a - b);
      return div.data.flatMap((trace, k) => (trace.customdata || []).flatMap((customdata, i) => {
        const x = trace.x[i], y = heights[k][i];
        return y !== null && x >= left && x <= right && y >= low && y <= high ? [{ x, customdata }] : [];
      }));
    };
    div.on("plotly_selected", (event) => {
      const boxes = (event && event.selections) || [];
      show(div, heights, boxes.length ? selected(boxes.flatMap(inside)) || new Set() : null);
    });
    div.on("plotly_deselect", () => show(div, heights, null));
  }

  function sortBy(head) {
    const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
    const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of table.querySelectorAll("[data-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const value = ({ cells: { [column]: cell } }) => cell.dataset.value || cell.textContent.trim();
    const compare = (a, b) => (Number.isNaN(a - b) ? a.localeCompare(b) : a - b);
    const rows = [...body.rows].sort((a, b) => compare(value(a), value(b)));
    body.append(...(order === "ascending" ? rows : rows.reverse()));
  }

  for (const head of document.querySelectorAll("[data-sort]")) head.addEventListener("click", () => sortBy(head));
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", () => {
      getSelection().selectAllChildren(button.previousElementSibling);
      if (document.execCommand("copy")) button.textContent = "copied";
    });
  }
  Promise.all(Object.keys(charts).map(draw)).then(() => {
    const parallel = document.getElementById("parallel");
    if (parallel) filterBySelection(parallel);
    document.documentElement.dataset.drawn = String(Math.round(performance.now()));
  });
})();
