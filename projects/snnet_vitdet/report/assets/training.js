// The course of the training: losses, learning rate, and the APs on the way.

const STYLES = [
  ["#0072B2", ""], ["#D55E00", "6 3"], ["#009E73", "2 3"], ["#CC79A7", "8 3 2 3"], ["#E69F00", "4 2"], ["#56B4E9", "1 3"],
];

function makeTraining(training) {
  const place = byId("training-charts");
  const { total_loss: total, ...parts } = training.losses;
  const losses = Object.entries(parts).map(([name, points], i) => line(name, points, i));
  if (total) {
    losses.push({ name: "total_loss", points: total, css: "line faint", ink: true, quiet: true });
    losses.push({ name: "total_loss, running mean", points: training.smoothed, css: "line strong", ink: true });
  }
  const aps = Object.entries(training.box_ap).map(([name, points], i) => {
    const each = line(name, points, i);
    // The anchors have their own colours on the page; the name of each is its kind.
    return { ...each, colour: data.colours[name] || each.colour, dots: true };
  });
  const rate = { name: "lr", points: training.learning_rate, css: "line", ink: true };
  const iterations = [...losses, ...aps, rate].flatMap(({ points }) => points.map(([x]) => x));
  // One range for all charts, so that equal places are equal iterations.
  let range = [iterations.reduce((a, b) => Math.min(a, b)), iterations.reduce((a, b) => Math.max(a, b))];
  const air = 0.02 * (range[1] - range[0]) || 1;
  range = [range[0] - air, range[1] + air];
  chart(place, "loss", losses, 300, range, true);
  if (aps.length) chart(place, "box AP of evaluations during the training", aps, 220, range);
  if (rate.points.length) chart(place, "learning rate", [rate], 170, range, true);
}

function line(name, points, i) {
  const [colour, dash] = STYLES[i % STYLES.length];
  return { name, points, css: "line", colour, dash };
}

function chart(parent, title, series, height, xRange, fromZero = false) {
  const legend = element("div", { class: "legend", "aria-hidden": "true" });
  const place = element("div", { class: "chart" });
  const named = series.filter(({ quiet }) => !quiet);
  if (named.length > 1) {
    for (const each of named) {
      const swatch = shape("svg", { class: "swatch" }, stroke(each, "M0 5H22"));
      legend.append(element("span", {}, swatch, each.name));
    }
  }
  parent.append(legend, place);
  drawnToFit(place, () => {
    const ys = series.flatMap(({ points }) => points.map(([, y]) => y));
    const [low, high] = padded(ys, 0.06);
    const ends = named.map(({ name, points }) => `${name} from ${points[0][1].toPrecision(3)} to ${points.at(-1)[1].toPrecision(3)}`);
    const { svg, x, y } = axes(place, {
      height,
      xRange,
      yRange: fromZero ? [Math.min(0, Math.min(...ys)), high] : [low, high],
      xTitle: "iteration",
      yTitle: title,
      label: `${title} over iterations: ${ends.join("; ")}`,
    });
    for (const each of series) {
      const points = each.points.map(([i, value]) => [x(i), y(value)]);
      svg.append(stroke(each, path(points)));
      if (each.dots || points.length === 1) {
        for (const [cx, cy] of points) svg.append(shape("circle", { cx, cy, r: 3.5, fill: each.colour || "currentColor" }));
      }
    }
  });
}

function stroke({ css, colour, dash, ink }, d) {
  const attributes = { class: css, d, stroke: ink ? "currentColor" : colour, fill: "none" };
  if (dash) attributes["stroke-dasharray"] = dash;
  return shape("path", attributes);
}
