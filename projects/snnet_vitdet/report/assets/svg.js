// Elements, scales and axes, for all charts.

const NAMESPACE = "http://www.w3.org/2000/svg";

function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function shape(name, attributes = {}, ...children) {
  return filled(document.createElementNS(NAMESPACE, name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  // Text becomes text nodes: no name from the data is ever read as HTML.
  node.append(...children);
  return node;
}

function byId(id) {
  return document.getElementById(id);
}

function marker(id) {
  return shape("svg", { class: "mark", "aria-hidden": "true" }, shape("use", { href: `#${id}` }));
}

// Round values from low to high, about as many as the count.
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((s) => s * power).find((s) => s >= raw * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => {
    // Times a whole number, then rounded: 0.1 added up would end in 0.30000000000000004.
    const value = (first + i) * step;
    const rounded = Number(value.toPrecision(6));
    const tiny = high < 1e-3 && rounded !== 0;
    return { value, text: tiny ? rounded.toExponential() : rounded.toLocaleString("en", { maximumSignificantDigits: 6 }) };
  });
}

// A range with some room on both sides; for a single value, a range around it.
function padded(values, share) {
  const low = values.reduce((a, b) => Math.min(a, b), Infinity);
  const high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const room = (high - low || Math.abs(high) || 1) * share;
  return [low - room, high + room];
}

function scale([low, high], [from, to]) {
  return (value) => from + ((value - low) / (high - low)) * (to - from);
}

// An empty chart as wide as its place, with axes. Gives the svg and both scales.
function axes(place, { height, xRange, yRange, xTitle, yTitle, label, role = "img" }) {
  const width = Math.max(240, place.clientWidth);
  const narrow = width < 520;
  const box = { left: narrow ? 40 : 48, right: width - (narrow ? 8 : 14), top: 26, bottom: height - 42 };
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role, "aria-label": label });
  const x = scale(xRange, [box.left, box.right]);
  const y = scale(yRange, [box.bottom, box.top]);
  const frame = shape("g", { "aria-hidden": "true" });
  for (const { value, text } of ticks(...yRange, narrow ? 5 : 7)) {
    frame.append(
      shape("line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }),
      shape("g", { class: "tick" }, shape("text", { x: box.left - 7, y: y(value) + 4, "text-anchor": "end" }, text)),
    );
  }
  for (const { value, text } of ticks(...xRange, narrow ? 4 : 8)) {
    frame.append(
      shape("line", { class: "grid", x1: x(value), x2: x(value), y1: box.top, y2: box.bottom }),
      shape("g", { class: "tick" }, shape("text", { x: x(value), y: box.bottom + 18, "text-anchor": x(value) > box.right - 10 ? "end" : "middle" }, text)),
    );
  }
  frame.append(
    shape("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
    shape("text", { class: "axis-title", x: box.right, y: height - 4, "text-anchor": "end" }, `${xTitle} →`),
    shape("text", { class: "axis-title", x: 0, y: 13 }, `↑ ${yTitle}`),
  );
  svg.append(frame);
  place.replaceChildren(svg);
  return { svg, x, y, box, width, narrow };
}

// Draws now and whenever the width of the place changes.
function drawnToFit(place, draw) {
  let width = 0;
  new ResizeObserver(() => {
    if (place.clientWidth !== width) {
      width = place.clientWidth;
      draw();
    }
  }).observe(place);
  return () => {
    width = place.clientWidth;
    draw();
  };
}

function path(points) {
  return points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}
