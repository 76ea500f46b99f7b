// Which kind of stitch is the best at a cost: kinds compared within bands of about equal cost.

const FEWEST_BANDS = 4;

function makeBands(state, data) {
  const place = byId("band-chart");
  const value = byId("band-value");
  // An anchor is a single network, no kind to compare.
  const kinds = data.kinds.filter(({ kind, anchor }) => !anchor && data.rows.some((row) => row.kind === kind));
  byId("band-legend").append(...kinds.map((kind) => element("span", {}, marker(kind.marker), `${kind.kind}: ${kind.label}`)));
  value.addEventListener("change", () => redraw());
  // At first of the stitches as trained: other sizes would mix their costs with those of the kinds.
  const preset = data.rows.some(asTrained) && !data.rows.every(asTrained) ? data.rows.find(asTrained) : {};
  const chosenPoints = makeFilters(byId("band-filters"), data, ["image_size", "num_proposals"], () => redraw(), preset);

  function compute() {
    const { key: xKey } = state.x;
    const { key: yKey } = state.y;
    const rows = data.rows.filter(
      (row) => row.compared && chosenPoints(row) && row[xKey] != null && row[yKey] != null && kinds.some(({ kind }) => kind === row.kind),
    );
    const costs = rows.map((row) => row[xKey]);
    const low = costs.reduce((a, b) => Math.min(a, b), Infinity);
    const high = costs.reduce((a, b) => Math.max(a, b), -Infinity);
    if (new Set(rows.map((row) => row.kind)).size < 2 || !(high > low)) return null;
    const count = rows.length < 40 ? FEWEST_BANDS : rows.length < 300 ? 2 * FEWEST_BANDS : 3 * FEWEST_BANDS;
    const width = (high - low) / count;
    return Array.from({ length: count }, (_, i) => {
      const from = low + i * width;
      // The last band includes the most expensive stitch.
      const inside = rows.filter((row) => Math.min(count - 1, Math.floor((row[xKey] - low) / width)) === i);
      const groups = kinds
        .map((kind) => {
          const scores = inside.filter((row) => row.kind === kind.kind).map((row) => row[yKey]);
          const sum = scores.reduce((a, b) => a + b, 0);
          return { kind, count: scores.length, best: Math.max(...scores), worst: Math.min(...scores), mean: sum / scores.length };
        })
        .filter((group) => group.count);
      groups.sort((a, b) => b[value.value] - a[value.value]);
      return { from, to: from + width, groups, count: inside.length };
    });
  }

  function draw() {
    const bands = compute();
    byId("band-table").hidden = byId("band-legend").hidden = !bands;
    if (!bands) {
      byId("band-summary").textContent = "There are not two kinds with these values to compare.";
      place.replaceChildren();
      return;
    }
    byId("band-summary").textContent = summary(bands);
    drawChart(bands);
    drawTable(bands);
  }

  function summary(bands) {
    const compared = bands.filter(({ groups }) => groups.length > 1);
    const wins = new Map();
    for (const { groups } of compared) wins.set(groups[0].kind.kind, (wins.get(groups[0].kind.kind) || 0) + 1);
    const leaders = [...wins].sort((a, b) => b[1] - a[1]).map(([kind, count], i) => `${kind} ${i ? "" : "is first "}in ${count}`);
    const what = value.value === "mean" ? "mean" : "best";
    return (
      `The costs of ${bands.reduce((sum, { count }) => sum + count, 0)} ${data.what} are cut into ${bands.length} bands ` +
      `of equal width (${state.x.label}). By the ${what} ${state.y.title}, ` +
      (leaders.length ? `${leaders.join(", ")} of ${compared.length} ${compared.length === 1 ? "band" : "bands"} with several kinds.` : "no band has several kinds.")
    );
  }

  function drawChart(bands) {
    const all = bands.flatMap(({ groups }) => groups.flatMap(({ best, worst }) => [best, worst]));
    const { svg, x, y, box } = axes(place, {
      height: place.clientWidth < 520 ? 280 : 320,
      xRange: [bands[0].from, bands.at(-1).to],
      yRange: padded(all, 0.08),
      xTitle: state.x.title,
      yTitle: `${state.y.title}: ${value.value === "mean" ? "mean" : "best"}, and from the worst to the best`,
      label: `${state.y.title} of each kind in bands of ${state.x.title}; the table below has the numbers`,
    });
    bands.forEach(({ from, to }, i) => {
      if (i % 2) svg.append(shape("rect", { class: "band", x: x(from), width: x(to) - x(from), y: box.top, height: box.bottom - box.top }));
    });
    for (const [k, kind] of kinds.entries()) {
      // A line joins neighbouring bands, and ends where the kind has no stitch.
      const lines = [[]];
      for (const { from, to, groups } of bands) {
        const group = groups.find((each) => each.kind === kind);
        if (!group) {
          lines.push([]);
          continue;
        }
        // Side by side within a band, or whiskers would hide each other.
        const px = x(from + (to - from) * ((k + 1) / (kinds.length + 1)));
        lines.at(-1).push([px, y(group[value.value])]);
        svg.append(shape("line", { class: "whisker", stroke: data.colours[kind.kind], x1: px, x2: px, y1: y(group.worst), y2: y(group.best) }));
      }
      svg.append(shape("path", { class: "line", stroke: data.colours[kind.kind], d: lines.map(path).join("") }));
      for (const [px, py] of lines.flat()) {
        svg.append(shape("g", { class: "bands-dot", transform: `translate(${px} ${py})` }, shape("use", { href: `#${kind.marker}` })));
      }
    }
  }

  function drawTable(bands) {
    const head = element("tr", {}, element("th", { scope: "col" }, state.x.label), ...kinds.map(({ kind }) => element("th", { scope: "col" }, kind)));
    const lines = bands.map(({ from, to, groups }) => {
      const cells = kinds.map((kind) => {
        const place = groups.findIndex((group) => group.kind === kind);
        if (place < 0) return element("td", {}, "–");
        const group = groups[place];
        const small = [`n = ${group.count}`];
        if (groups.length > 1) small.unshift(`${place + 1} of ${groups.length},`);
        const first = groups.length > 1 && place === 0 ? { class: "first" } : {};
        return element("td", first, group[value.value].toFixed(1), element("small", {}, ...small.flatMap((text) => [element("span", {}, text), " "])));
      });
      const limits = [from, to].map((cost) => cost.toFixed(state.x.decimals)).join(" – ");
      return element("tr", {}, element("th", { scope: "row" }, limits), ...cells);
    });
    byId("band-table").replaceChildren(element("table", {}, element("thead", {}, head), element("tbody", {}, ...lines)));
  }

  const redraw = drawnToFit(place, draw);
  return { redraw };
}
