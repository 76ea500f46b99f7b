// The state of the page, and what is redrawn when it changes.

const data = JSON.parse(byId("data").textContent);
data.colours = Object.fromEntries(data.kinds.map(({ kind, marker }) => [kind, byId(marker).getAttribute("fill")]));
const costs = data.columns.filter(({ role }) => role === "cost");
const scores = data.columns.filter(({ role }) => role === "score");

const state = {
  rows: data.rows,
  x: costs[0],
  y: scores[0] || { key: "bbox_AP", label: "box AP", title: "box AP" },
  hidden: new Set(),
  front: [],
  frontSet: new Set(),
  stitchFront: [],
  selected: null,
  hovered: null,
  select(row) {
    state.selected = row;
    state.hovered = null;
    mark();
    table.reveal();
  },
  hover(row) {
    if (row === state.hovered) return;
    state.hovered = row;
    plot.mark();
    details();
  },
};

document.documentElement.classList.add("scripted");
const plot = makePlot(state, data);
const table = makeTable(state, data);
const bands = makeBands(state, data);

function details() {
  showDetails(byId("details"), state.hovered || state.selected, state, data);
}

function mark() {
  plot.mark();
  table.mark();
  details();
}

function update() {
  // The frontier of what is shown.
  state.rows = data.rows.filter((row) => !state.hidden.has(row.kind) && chosenPoints(row));
  state.front = frontier(state.rows, state.x.key, state.y.key);
  state.frontSet = new Set(state.front);
  // That of stitches alone, if it is another one.
  const stitches = state.rows.filter(asTrained);
  state.stitchFront = stitches.length < state.rows.length ? frontier(stitches, state.x.key, state.y.key) : [];
  // At first the best stitch is selected, so that the details are not empty.
  state.selected ||= state.front.at(-1) || null;
  // The table first: charts measure their places, and a browser would lay out all its lines for it.
  table.redraw();
  plot.redraw();
  bands.redraw();
  details();
}

for (const [id, columns, axis] of [["x-axis", costs, "x"], ["y-axis", scores, "y"]]) {
  byId(id).append(...columns.map(({ key, label, title }) => element("option", { value: key }, axis === "x" ? label : title)));
  byId(id).addEventListener("change", (event) => {
    state[axis] = columns.find(({ key }) => key === event.target.value);
    update();
  });
}

const chosenPoints = makeFilters(byId("plot-filters"), data, ["image_size", "num_proposals"], update);

byId("legend").hidden = data.kinds.length < 2;
for (const { kind, label, marker: shapeId } of data.kinds) {
  const count = data.rows.filter((row) => row.kind === kind).length;
  const button = element("button", { type: "button", "aria-pressed": "true", "data-kind": kind }, marker(shapeId), kind);
  if (label !== kind) button.append(element("span", { class: "long" }, `: ${label}`));
  button.append(element("span", { class: "count" }, count));
  button.addEventListener("click", () => {
    const show = state.hidden.has(kind);
    if (show) state.hidden.delete(kind);
    else state.hidden.add(kind);
    button.setAttribute("aria-pressed", String(show));
    update();
  });
  byId("legend").append(button);
}

update();
const spelt = data.kinds.filter(({ kind, label }) => label !== kind).map(({ kind, label }) => `${kind} is ${label}`);
if (spelt.length) byId("kinds-spelt").textContent = `Kinds: ${spelt.join(", ")}.`;
if (data.training) makeTraining(data.training);
makePictures();
