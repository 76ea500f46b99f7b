// The plot of cost and accuracy, and the details of the stitch that is selected.

// The frontier as the sweep defines it: a row is beaten by one that costs at most as much and scores
// at least as much, one of them strictly; only rows that can be compared take part.
function frontier(rows, xKey, yKey) {
  const sorted = rows
    .filter((row) => row.compared && row[xKey] != null && row[yKey] != null)
    .sort((a, b) => a[xKey] - b[xKey] || b[yKey] - a[yKey]);
  const front = [];
  for (const row of sorted) {
    const last = front.at(-1);
    if (!last || row[yKey] > last[yKey] || (row[yKey] === last[yKey] && row[xKey] === last[xKey])) front.push(row);
  }
  return front;
}

// More points are drawn smaller and paler, or they would be one cloud.
const CROWD = 1000;

function makePlot(state, data) {
  const place = byId("chart");
  const kinds = new Map(data.kinds.map((kind) => [kind.kind, kind]));
  // A single ViT at another size is one of many points.
  const isAnchor = (row) => kinds.get(row.kind).anchor && asTrained(row);
  let points = []; // {row, px, py, node}, by cost
  let guides;

  function shown() {
    return state.rows.filter((row) => row[state.x.key] != null && row[state.y.key] != null);
  }

  function draw() {
    const rows = shown();
    writeNote(rows);
    points = [];
    guides = null;
    if (!rows.length) {
      place.replaceChildren(element("p", { class: "note" }, "Nothing that is shown has both values."));
      return;
    }
    const { x: xColumn, y: yColumn } = state;
    const chart = axes(place, {
      height: place.clientWidth < 520 ? 360 : 470,
      xRange: padded(rows.map((row) => row[xColumn.key]), 0.06),
      yRange: padded(rows.map((row) => row[yColumn.key]), 0.1),
      xTitle: xColumn.title,
      yTitle: `${yColumn.title}, 0–100`,
      label: `${yColumn.title} over ${xColumn.title}`,
      role: "group",
    });
    const { svg, x, y, box } = chart;
    // Stepped: between two of its points, a budget buys no more than the cheaper one gives.
    const stepped = (front) =>
      path(front.flatMap((row, i) => {
        const corner = [x(row[xColumn.key]), y(row[yColumn.key])];
        return i ? [[corner[0], y(front[i - 1][yColumn.key])], corner] : [corner];
      }));
    const lines = [["front alone", state.stitchFront], ["front", state.front]].map(([css, front]) =>
      shape("path", { class: css, d: stepped(front), "aria-hidden": "true" }),
    );
    byId("front-legend").hidden = !state.stitchFront.length;
    guides = shape("path", { class: "guide", fill: "none", "aria-hidden": "true" });
    const list = shape("g", { role: "listbox", "aria-label": `By ${xColumn.title}` });
    svg.append(guides, list);

    const sizes = new Map();
    for (const row of rows) sizes.set(row.kind, (sizes.get(row.kind) || 0) + 1);
    const crowded = rows.length > CROWD;
    list.classList.toggle("crowded", crowded);
    const dot = crowded ? (chart.narrow ? 0.4 : 0.5) : rows.length > 60 ? (chart.narrow ? 0.72 : 0.86) : 1.1;
    points = rows
      .map((row) => ({ row, px: x(row[xColumn.key]), py: y(row[yColumn.key]) }))
      .sort((a, b) => a.px - b.px || b.py - a.py);
    for (const point of points) {
      const { row } = point;
      const kind = kinds.get(row.kind);
      const anchor = isAnchor(row);
      // The star of an anchor is twice as large as other markers.
      const star = kind.anchor ? 0.55 : 1;
      const size = anchor ? 1 : star * (crowded && state.frontSet.has(row) ? 1.6 * dot : dot);
      point.node = shape(
        "g",
        {
          class: "point", role: "option", "data-name": row.name, tabindex: -1,
          transform: `translate(${point.px.toFixed(2)} ${point.py.toFixed(2)})`,
          "aria-label": spoken(row),
        },
        shape("circle", { class: "ring", r: anchor ? 15 : 10 }),
        shape("use", { href: `#${kind.marker}`, transform: `scale(${size})` }),
      );
      point.node.classList.toggle("anchor", anchor);
      point.node.classList.toggle("on-front", state.frontSet.has(row));
      point.node.classList.toggle("pale", !row.compared);
    }
    // Small kinds above large ones, which would hide them in a crowd; then the frontier.
    const isAbove = ({ row }) => isAnchor(row) || state.frontSet.has(row);
    const below = points.filter((point) => !isAbove(point)).sort((a, b) => sizes.get(b.row.kind) - sizes.get(a.row.kind));
    const above = points.filter(isAbove).sort((a, b) => isAnchor(a.row) - isAnchor(b.row));
    list.append(...below.map(({ node }) => node), ...lines, ...above.map(({ node }) => node));
    labelAnchors(svg, box);
    mark();
  }

  function spoken(row) {
    const where = state.frontSet.has(row) ? ", on the frontier" : "";
    return (
      `${row.name}, id ${row.stitch_id}, ${state.y.label} ${row.text[state.y.key]}, ` +
      `${row.text[state.x.key]} ${state.x.label}${where}`
    );
  }

  // Each anchor's name below its star, or above it where there is no room.
  function labelAnchors(svg, box) {
    for (const { row, px, py } of points.filter(({ row }) => isAnchor(row))) {
      const x = Math.min(Math.max(px, box.left + 45), box.right - 45);
      const y = py + 28 < box.bottom ? py + 28 : py - 18;
      const look = { class: "label halo", "text-anchor": "middle", "aria-hidden": "true" };
      svg.append(shape("text", { ...look, x, y }, kinds.get(row.kind).label));
    }
  }

  function writeNote(rows) {
    const parts = [];
    const fewer = rows.filter((row) => !row.compared).length;
    parts.push(`On the frontier of ${state.y.title} over ${state.x.label}: ${state.front.length} of ${state.rows.length}.`);
    if (fewer) parts.push(`${fewer} are pale: scored on fewer images, they take no part.`);
    if (rows.length < state.rows.length) parts.push(`${state.rows.length - rows.length} without one of the values are not shown.`);
    byId("chart-note").textContent = parts.join(" ");
  }

  // Marks the selected and the hovered point without redrawing.
  function mark() {
    const selected = points.find(({ row }) => row === state.selected);
    for (const point of points) {
      point.node.setAttribute("aria-selected", String(point === selected));
      point.node.classList.toggle("hovered", point.row === state.hovered);
      point.node.setAttribute("tabindex", point === (selected || points[0]) ? 0 : -1);
    }
    if (!guides) return;
    const at = points.find(({ row }) => row === (state.hovered || state.selected));
    const box = guides.ownerSVGElement.viewBox.baseVal;
    guides.setAttribute("d", at ? `M${at.px} ${at.py}V${box.height - 42}M${at.px} ${at.py}H${box.width < 520 ? 40 : 48}` : "");
  }

  function nearest(event, reach) {
    const svg = place.querySelector("svg");
    if (!svg || !points.length) return null;
    const area = svg.getBoundingClientRect();
    const ratio = svg.viewBox.baseVal.width / area.width;
    const px = (event.clientX - area.left) * ratio;
    const py = (event.clientY - area.top) * ratio;
    const distance = (p) => Math.hypot(p.px - px, p.py - py);
    const best = points.reduce((a, b) => (distance(b) < distance(a) ? b : a));
    return distance(best) <= reach ? best.row : null;
  }

  place.addEventListener("pointermove", (event) => {
    if (event.pointerType === "mouse") state.hover(nearest(event, 24));
  });
  place.addEventListener("pointerleave", () => state.hover(null));
  place.addEventListener("click", (event) => {
    const row = nearest(event, 32);
    if (row) state.select(row);
  });
  place.addEventListener("focusin", (event) => {
    const point = points.find(({ node }) => node === event.target);
    if (point && point.row !== state.selected && event.target.matches(":focus-visible")) state.select(point.row);
  });
  place.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowUp: 1, ArrowDown: -1, Home: -Infinity, End: Infinity };
    const step = steps[event.key];
    if (step === undefined || event.ctrlKey || event.metaKey || event.altKey || !points.length) return;
    event.preventDefault();
    const vertical = event.key === "ArrowUp" || event.key === "ArrowDown";
    const order = vertical ? [...points].sort((a, b) => b.py - a.py || a.px - b.px) : points;
    const now = order.findIndex(({ row }) => row === state.selected);
    const next = order[Math.min(order.length - 1, Math.max(0, now + step))];
    state.select(next.row);
    next.node.focus();
  });
  for (const [css, text] of [["front", "frontier of all points"], ["front alone", "frontier of the stitches alone, as trained"]]) {
    const swatch = shape("svg", { class: "swatch" }, shape("path", { class: css, d: "M0 5H22" }));
    byId("front-legend").append(element("span", {}, swatch, text));
  }
  const redraw = drawnToFit(place, draw);
  return { redraw, mark };
}

// The details of a stitch.
function showDetails(place, row, state, data) {
  if (!row) {
    place.replaceChildren(element("p", { class: "note" }, "Nothing is selected."));
    return;
  }
  const kind = data.kinds.find((each) => each.kind === row.kind);
  const on = state.frontSet.has(row);
  const facts = element("dl");
  for (const column of data.columns) {
    if (column.role !== "score" && column.key !== "name") {
      const spelt = column.key === "kind" && kind.label !== kind.kind ? `${kind.kind}: ${kind.label}` : row.text[column.key];
      facts.append(element("dt", {}, column.label), element("dd", {}, spelt));
    }
  }
  const scores = element("table");
  const tasks = [...new Set(data.columns.filter((c) => c.role === "score").map((c) => c.label.split(" ")[0]))];
  if (tasks.length) {
    scores.append(element("tr", {}, element("td"), ...tasks.map((task) => element("th", { scope: "col" }, task))));
    for (const name of new Set(data.columns.filter((c) => c.role === "score").map((c) => c.label.split(" ")[1]))) {
      const cells = tasks.map((task) => {
        const column = data.columns.find((c) => c.label === `${task} ${name}`);
        return element("td", {}, column ? row.text[column.key] : "–");
      });
      scores.append(element("tr", {}, element("th", { scope: "row" }, name), ...cells));
    }
  }
  place.replaceChildren(
    element("h3", {}, marker(kind.marker), row.name),
    element("span", { class: on ? "badge" : "badge no" }, on ? "on the frontier" : "not on the frontier"),
    facts,
    scores,
    element("p", { class: "note" }, "Use it: ", element("code", {}, `--stitch ${row.name}`)),
  );
}
