"use strict";
// The trade-off curve, its slider and its operating points, for the pages of both servers. A page brings `words`
// (item, items, quality, tick) and `ask`, which is called when the setting changes.
const $ = id => document.getElementById(id);
const percent = (x, digits = 1) => (100 * x).toFixed(digits) + "%";
const number = x => x === "inf" || x === null ? Infinity : Number(x);
const three = x => Number(x.toPrecision(3));
const macs = x => x >= 1e9 ? three(x / 1e9) + " G" : x >= 1e6 ? three(x / 1e6) + " M" : three(x / 1e3) + " k";
let run, curve, chosen = null;  // chosen: the operating point of a button, until the slider moves

function make(parent, tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return parent.appendChild(node);
}

// To the right: a higher threshold, fewer exits, more cost, as in the chart. The curve begins at its right end.
const index = () => curve.threshold.length - 1 - Number($("slider").value);
const threshold = () => curve ? curve.threshold[index()] : Number($("slider").value) / 100;

function scales() {
  const [low, high] = [Math.min(...curve.macs), Math.max(...curve.macs)];
  const [worst, best] = [Math.min(...curve.quality), Math.max(...curve.quality)];
  const room = Math.max(0.02, best - worst) * 0.1;
  return {
    x: m => 48 + 416 * (m - low) / Math.max(1, high - low),
    y: q => 222 - 204 * (q - worst + room) / (best - worst + 2 * room),
    low, high, worst, best,
  };
}

// Round numbers from low to high, about five of them.
function ticks(low, high) {
  const rough = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(x => x * power).find(x => x >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return { step, values: Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step) };
}

function drawChart() {
  const chart = $("chart"), to = scales(), { step, values } = ticks(to.worst, to.best);
  for (const q of values) {
    make(chart, "line", { x1: 48, x2: 464, y1: to.y(q), y2: to.y(q), class: "axis" });
    make(chart, "text", { x: 42, y: to.y(q) + 4, "text-anchor": "end" }, words.tick(q, step));
  }
  for (const m of ticks(to.low, to.high).values) make(chart, "text", { x: to.x(m), y: 240, "text-anchor": "middle" }, macs(m));
  make(chart, "text", { x: 256, y: 257, "text-anchor": "middle" }, `mean multiply-adds per ${words.item}`);
  make(chart, "polyline", { class: "curve", points: curve.macs.map((m, i) => `${to.x(m)},${to.y(curve.quality[i])}`).join(" ") });
  let right = 500;  // names that would lie on each other are left to the dots' titles
  // A point that was fitted for another cost, such as milliseconds, lies where its threshold does.
  const last = curve.threshold.length - 1;
  const onCurve = p => p.cost_unit === "macs" ? { name: p.name, cost: p.cost, quality: p.quality }
    : { name: p.name, cost: curve.macs[last - place(p.threshold)], quality: curve.quality[last - place(p.threshold)] };
  for (const point of Object.values(run.operating_points).map(onCurve).sort((a, b) => b.cost - a.cost)) {
    const [x, y] = [to.x(point.cost), to.y(point.quality)], dot = make(chart, "circle", { cx: x, cy: y, r: 4, class: "point" });
    make(dot, "title", {}, point.name);
    const half = 3.8 * point.name.length;
    if (x + half > right - 6) continue;
    make(chart, "text", { x, y: y - 12, "text-anchor": "middle", class: "name" }, point.name);
    right = x - half;
  }
  make(chart, "circle", { r: 7, class: "here", id: "here" });
}

function showSetting() {
  const t = threshold();
  $("threshold").textContent = t === Infinity ? "none exit" : t.toFixed(3);
  for (const button of $("points").children) button.ariaPressed = chosen !== null ? button.textContent === chosen : place(run.operating_points[button.textContent].threshold) === Number($("slider").value);
  if (!curve) return;
  const to = scales(), i = index();
  // A stored point may be of another system than the curve.
  const point = chosen === null ? null : run.operating_points[chosen];
  const now = point && point.cost_unit === "macs" && point.system !== (run.slider ?? point.system)
    ? { exits: point.exit_rate, mean: point.cost, quality: point.quality }
    : { exits: curve.exit_rate[i], mean: curve.macs[i], quality: curve.quality[i] };
  $("exits").textContent = percent(now.exits, 0);
  $("mean").textContent = macs(now.mean);
  $("accuracy").textContent = words.quality(now.quality);
  $("here").setAttribute("cx", to.x(now.mean));
  $("here").setAttribute("cy", to.y(now.quality));
}

// Of a threshold, on the slider.
function place(wanted) {
  const t = number(wanted);
  if (!curve) return Math.min(100, Math.round(100 * t));
  const last = curve.threshold.length - 1, lower = curve.threshold.findIndex(x => x < t);
  return lower < 0 ? 0 : last - Math.max(0, lower - 1);
}

async function showDrift() {
  const drift = (await (await fetch("health")).json()).drift;
  const count = drift[`num_${words.items}`];
  $("drift").textContent = count === 0 ? "" : `Of the last ${count} predicted: ${percent(drift.live, 0)} exited, calibration expects ${percent(drift.expected, 0)}` + (drift.drifted ? `. These ${words.items} are unlike the calibration data.` : ".");
}

// Once `run` and `curve` are known; `remedy`: how a run gets a curve; `remark`: where that is said.
function beginTradeOff(remedy, remark = $("source")) {
  if (curve) {
    $("slider").max = curve.threshold.length - 1;
    drawChart();
    remark.textContent = `on ${curve.num_samples} ${words.items} (${curve.data}), ${curve.date}`;
  } else remark.textContent = `This run holds no trade-off curve: ${remedy}`;
  for (const point of Object.values(run.operating_points)) {
    const button = document.createElement("button");
    button.textContent = point.name;
    button.title = point.system ?? "";
    button.onclick = () => { chosen = point.name; $("slider").value = place(point.threshold); showSetting(); ask(); };
    $("points").append(button);
  }
  if (run.default.name in run.operating_points) chosen = run.default.name;
  $("slider").value = place(run.default.threshold);
  $("slider").addEventListener("input", () => { chosen = null; }, true);  // before the page's own
}
