// How did the loss fall? A small chart in SVG, drawn anew whenever its rows or its width change.

import { draw, grouped } from "./dom.js";

const HEIGHT = 260;
const MARGIN = { top: 12, right: 14, bottom: 30, left: 44 };
const MOST_POINTS = 600; // more than a screen can show

/** Draw the losses of `rows` into an svg element; `best`: the step with the lowest val_loss. */
export function drawCurve(svg, rows, best) {
  const width = Math.max(280, svg.parentElement.clientWidth);
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.setAttribute("height", HEIGHT);
  svg.setAttribute("aria-label", inWords(rows, best));
  const lines = ["train_loss", "val_loss"].map((name) => ({ name, points: pointsOf(rows, name) }));
  const all = lines.flatMap((line) => line.points);
  if (!all.length) {
    svg.replaceChildren(note(width, "no loss yet"));
    return;
  }
  const scale = scaleOf(all, width);
  const curves = lines.flatMap((line) => curve(line, scale));
  svg.replaceChildren(...grid(scale), ...curves, ...ring(lines[1], best, scale));
}

/** Return the chart's content in words. */
export function inWords(rows, best) {
  const last = (name) => pointsOf(rows, name).at(-1);
  const losses = ["train_loss", "val_loss"]
    .map((name) => [name, last(name)])
    .filter(([, point]) => point)
    .map(([name, point]) => `${name} ${point.y.toFixed(4)} at step ${grouped(point.x)}`);
  const lowest = Number.isFinite(best) ? `; lowest val_loss at step ${grouped(best)}` : "";
  return `Loss in nats per token: ${losses.join(", ") || "none yet"}${lowest}`;
}

function pointsOf(rows, name) {
  const points = rows
    .filter((row) => Number.isFinite(row[name]) && Number.isFinite(row.step))
    .map((row) => ({ x: row.step, y: row[name] }));
  return thinned(points);
}

// The mean of neighbours, so that a noisy curve stays as it looks
function thinned(points) {
  const size = Math.ceil(points.length / MOST_POINTS);
  if (size <= 1) return points;
  const means = [];
  for (let i = 0; i < points.length; i += size) {
    const group = points.slice(i, i + size);
    const y = group.reduce((sum, point) => sum + point.y, 0) / group.length;
    means.push({ x: group.at(-1).x, y });
  }
  return means;
}

function scaleOf(points, width) {
  const ys = points.map((point) => point.y);
  const lowest = Math.min(...ys);
  const highest = Math.max(...ys);
  const ticks = niceTicks(lowest, highest === lowest ? lowest + 1 : highest, 5);
  const last = Math.max(...points.map((point) => point.x), 1);
  const from = Math.min(ticks[0], lowest);
  const to = Math.max(ticks.at(-1), highest);
  const across = width - MARGIN.left - MARGIN.right;
  const down = HEIGHT - MARGIN.top - MARGIN.bottom;
  return {
    width,
    ticks,
    steps: niceTicks(0, last, width < 480 ? 4 : 7).filter((step) => step <= last),
    x: (step) => MARGIN.left + (step / last) * across,
    y: (loss) => MARGIN.top + (1 - (loss - from) / (to - from)) * down,
  };
}

function niceTicks(from, to, count) {
  const rough = (to - from) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const ticks = [];
  for (let i = Math.floor(from / size); i <= Math.ceil(to / size); i += 1) ticks.push(i * size);
  return ticks;
}

function grid(scale) {
  const bottom = HEIGHT - MARGIN.bottom;
  const right = scale.width - MARGIN.right;
  const across = scale.ticks.flatMap((loss) => {
    const y = scale.y(loss);
    const text = draw("text", { x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" }, tidy(loss));
    return [draw("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y, y2: y }), text];
  });
  const below = scale.steps.map((step) =>
    draw("text", { x: scale.x(step), y: bottom + 20, "text-anchor": "middle" }, short(step)),
  );
  return [...across, ...below];
}

function tidy(number) {
  return String(Number(number.toFixed(4)));
}

function short(step) {
  return step >= 10_000 ? `${tidy(step / 1000)}k` : grouped(step);
}

function curve({ name, points }, scale) {
  if (!points.length) return [];
  const path = points
    .map(({ x, y }, i) => `${i ? "L" : "M"}${scale.x(x).toFixed(1)} ${scale.y(y).toFixed(1)}`)
    .join("");
  const dots = name === "val_loss" && points.length <= 60 ? points : points.slice(-1);
  const marks = dots.map((point) => circle(name, point, 3, scale));
  return [draw("path", { class: name, d: path }), ...marks];
}

function circle(kind, { x, y }, r, scale) {
  return draw("circle", { class: kind, cx: scale.x(x), cy: scale.y(y), r });
}

function ring({ points }, best, scale) {
  const point = points.find(({ x }) => x === best);
  if (!point) return [];
  const mark = circle("best", point, 6.5, scale);
  const words = `lowest val_loss ${point.y.toFixed(4)}, step ${grouped(point.x)}`;
  mark.append(draw("title", {}, words));
  return [mark];
}

function note(width, text) {
  return draw("text", { x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, text);
}
