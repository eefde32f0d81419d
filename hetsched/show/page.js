// Draws the data of the page: time from left to right, a row a lane. Times are nanoseconds throughout.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const [LEFT, RIGHT, AXIS, MEMORY] = [data.layers.length > 1 ? 140 : 84, 196, 30, 150];
const FUSED = 64;
const FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif";

// Flat lists become arrays by number of span or message; spans of a lane follow each other by start.
function decode(raw) {
  const count = raw.looks.length;
  const layer = { ...raw, names: raw.names.split(" "), labels: raw.labels.split(" "), first: [0] };
  layer.start = new Float64Array(count);
  layer.end = new Float64Array(count);
  layer.lane = new Int32Array(count);
  let n = 0;
  raw.lanes.forEach((size, lane) => {
    for (let time = 0, i = 0; i < size; i++, n++) {
      layer.start[n] = time + raw.times[2 * n];
      time = layer.end[n] = layer.start[n] + raw.times[2 * n + 1];
      layer.lane[n] = lane;
    }
    layer.first.push(n);
  });
  layer.messages = [];
  for (let i = 0; i < raw.messages.length; i += 5) {
    const [from, to, start, duration, isBackward] = raw.messages.slice(i, i + 5);
    layer.messages.push({ from, to, start, end: start + duration, isBackward });
  }
  layer.needs = new Map();
  for (let i = 0; i < raw.needs.length; i += 3) {
    const [maker, user, message] = raw.needs.slice(i, i + 3);
    if (!layer.needs.has(user)) layer.needs.set(user, []);
    layer.needs.get(user).push({ maker, message: message < 0 ? null : layer.messages[message] });
  }
  layer.isCritical = new Set(raw.critical);
  return layer;
}

const layers = data.layers.map(decode);
const numLanes = Math.max(...layers.map((layer) => layer.lanes.length));
const total = Math.max(1, ...layers.map((layer) => layer.makespan));
const bar = Math.max(9, Math.min(30, Math.floor(620 / (numLanes * layers.length)) - 4));
const wire = bar >= 14 ? 3 : 2;
const rowHeight = bar + wire + 5;
const laneHeight = rowHeight * layers.length + (bar >= 14 ? 8 : 2);

const state = { from: 0, to: total, width: 0, hover: null, lane: widestLane(), isDrawn: false };

function widestLane() {
  const peaks = layers[0].memory.curves.map((curve) => Math.max(0, ...curve.filter((_, i) => i % 2)));
  return Math.max(0, peaks.indexOf(Math.max(...peaks)));
}

// Times and places.

const x = (time) => LEFT + ((time - state.from) / (state.to - state.from)) * state.width;
const timeAt = (px) => state.from + ((px - LEFT) / state.width) * (state.to - state.from);
const rowTop = (lane, layer) => lane * laneHeight + layer * rowHeight + 2;

function format(time) {
  const value = time / data.unit.ns;
  const digits = Math.abs(value) >= 100 ? 2 : 4;
  return `${Number(value.toFixed(digits))} ${data.unit.name}`.trim();
}

function roundStep(smallest) {
  const power = 10 ** Math.floor(Math.log10(smallest));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= smallest * 0.999);
}

// The width of a digit.
const glyph = () => (bar < 12 ? 5.1 : 6.2);

// The number of the first span of a lane that ends after a time.
function firstAfter(layer, lane, time) {
  let [low, high] = [layer.first[lane], layer.first[lane + 1]];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (layer.end[middle] <= time) low = middle + 1;
    else high = middle;
  }
  return low;
}

// The span under a point of the lanes' canvas: {layer, span}, or null.
function hit(px, py) {
  const lane = Math.floor(py / laneHeight);
  const layer = Math.min(layers.length - 1, Math.floor((py - lane * laneHeight) / rowHeight));
  if (lane < 0 || lane >= numLanes || layer < 0 || px < LEFT || px > LEFT + state.width) return null;
  const time = timeAt(px);
  const span = firstAfter(layers[layer], lane, time);
  const found = span < layers[layer].first[lane + 1] && layers[layer].start[span] <= time;
  return found ? { layer, span } : null;
}

// Drawing.

function prepare(canvas, height) {
  const ratio = window.devicePixelRatio || 1;
  const width = document.documentElement.clientWidth;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = `11px ${FONT}`;
  context.textBaseline = "middle";
  return context;
}

function hatched(look) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 6;
  const context = tile.getContext("2d");
  context.fillStyle = look.fill;
  context.fillRect(0, 0, 6, 6);
  context.strokeStyle = look.ink;
  context.globalAlpha = 0.38;
  const lines = {
    rising: [[-1, 1, 1, -1], [0, 6, 6, 0], [5, 7, 7, 5]],
    falling: [[-1, 5, 1, 7], [0, 0, 6, 6], [5, -1, 7, 1]],
    level: [[0, 3, 6, 3]],
    dots: [[1, 1.5, 2, 1.5], [4, 4.5, 5, 4.5]],
  }[look.hatch] || [];
  context.beginPath();
  for (const [x0, y0, x1, y1] of lines) {
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
  }
  context.stroke();
  return tile;
}

const tiles = data.looks.map(hatched);
const isHatched = data.looks.map((look) => look.hatch !== "none");

function ticks(most) {
  const step = roundStep((state.to - state.from) / most / data.unit.ns);
  const result = [];
  for (let i = Math.ceil(state.from / data.unit.ns / step); i * step * data.unit.ns <= state.to; i++) {
    result.push([i * step * data.unit.ns, `${Number((i * step).toPrecision(10))}`]);
  }
  return result;
}

function paintAxis() {
  const context = prepare($("axis"), AXIS);
  context.fillStyle = data.colors.muted;
  context.textAlign = "center";
  for (const [time, text] of ticks(state.width / 110)) context.fillText(text, x(time), AXIS / 2);
  context.textAlign = "right";
  context.fillText(data.unit.name, LEFT - 16, AXIS / 2);
  context.textAlign = "left";
  context.fillText("idle, by cause", LEFT + state.width + 28, AXIS / 2);
}

function paintGrid(context, height) {
  context.fillStyle = data.colors.grid;
  for (const [time] of ticks(state.width / 110)) context.fillRect(Math.round(x(time)), 0, 1, height);
}

function paintLanes() {
  const height = numLanes * laneHeight + 4;
  const context = prepare($("lanes"), height);
  paintGrid(context, height);
  const patterns = tiles.map((tile) => context.createPattern(tile, "repeat"));
  layers.forEach((layer, index) => {
    for (let lane = 0; lane < layer.lanes.length; lane++) paintLane(context, layer, index, lane, patterns);
    if ($("transfers").checked) paintTransfers(context, layer, index);
    if ($("critical").checked) paintCritical(context, layer, index);
  });
  if (state.hover) paintNeeds(context);
}

function paintLane(context, layer, index, lane, patterns) {
  const top = rowTop(lane, index);
  const small = bar < 12;
  context.font = `${small ? 9 : 11}px ${FONT}`;
  context.fillStyle = data.colors.lane;
  context.fillRect(LEFT, top, state.width, bar);
  context.fillStyle = lane === state.lane ? data.colors.critical : data.colors.muted;
  context.textAlign = "left";
  if (index === 0) context.fillText(`lane ${lane}${lane === state.lane ? " \u25c2" : ""}`, 24, top + bar / 2);
  context.textAlign = "right";
  context.fillStyle = data.colors.muted;
  if (layers.length > 1) context.fillText(layer.name, LEFT - 8, top + bar / 2);
  paintIdle(context, layer, lane, top);
  context.textAlign = "center";
  context.save();
  context.beginPath();
  context.rect(LEFT, top, state.width, bar);
  context.clip();
  // What shares a pixel with what is drawn there already is left out.
  let covered = -1;
  for (let span = firstAfter(layer, lane, state.from); span < layer.first[lane + 1]; span++) {
    if (layer.start[span] > state.to) break;
    const [left, right] = [x(layer.start[span]), x(layer.end[span])];
    if (right > covered) paintSpan(context, layer, span, { top, left, width: right - left, patterns });
    covered = Math.max(covered, Math.floor(right));
  }
  context.restore();
}

function paintSpan(context, layer, span, box) {
  const code = layer.looks[span];
  const looks = code < FUSED ? [code] : [code % FUSED, Math.floor(code / FUSED) - 1];
  const width = box.width > 4 ? box.width - 1 : Math.max(box.width, 0.5);
  const height = bar / looks.length;
  looks.forEach((number, i) => {
    context.fillStyle = isHatched[number] && width >= 4 ? box.patterns[number] : data.looks[number].fill;
    context.fillRect(box.left, box.top + i * height, width, height);
  });
  const label = layer.labels[span];
  const room = glyph() * label.length;
  if (looks.length > 1 || width < room + 4) return;
  const [left, right] = [Math.max(box.left, LEFT), Math.min(box.left + width, LEFT + state.width)];
  const middle = (left + right) / 2;
  const look = data.looks[looks[0]];
  if (isHatched[looks[0]]) {
    context.fillStyle = look.fill;
    context.fillRect(middle - room / 2 - 2, box.top + bar / 2 - 7, room + 4, 14);
  }
  context.fillStyle = look.ink;
  context.fillText(label, middle, box.top + bar / 2 + 0.5);
}

function paintIdle(context, layer, lane, top) {
  const [left, width] = [LEFT + state.width + 28, RIGHT - 90];
  const causes = Object.values(data.causes);
  const times = layer.bubbles[lane];
  let at = left;
  times.forEach((time, i) => {
    context.fillStyle = causes[i];
    context.fillRect(at, top + 1, (time / Math.max(1, layer.makespan)) * width, bar - 2);
    at += (time / Math.max(1, layer.makespan)) * width;
  });
  const idle = times.reduce((sum, time) => sum + time, 0) / Math.max(1, layer.makespan);
  context.fillStyle = data.colors.muted;
  context.textAlign = "left";
  context.fillText(`${Math.round(100 * idle)}%`, at + 6, top + bar / 2);
}

function paintTransfers(context, layer, index) {
  for (const message of layer.messages) {
    if (message.end <= message.start || message.end < state.from || message.start > state.to) continue;
    const left = Math.max(LEFT, x(message.start));
    const width = Math.max(0.5, Math.min(LEFT + state.width, x(message.end)) - left);
    context.fillStyle = message.isBackward ? data.colors.backward : data.colors.forward;
    for (const lane of [message.from, message.to]) context.fillRect(left, rowTop(lane, index) + bar + 3, width, wire);
  }
}

function paintCritical(context, layer, index) {
  context.fillStyle = data.colors.critical;
  for (const number of layer.critical) {
    if (number < 0 || layer.end[number] < state.from || layer.start[number] > state.to) continue;
    const left = Math.max(LEFT, x(layer.start[number]));
    const right = Math.min(LEFT + state.width, x(layer.end[number]));
    context.fillRect(left, rowTop(layer.lane[number], index) + bar, Math.max(0.5, right - left), 2);
  }
}

// Lines from what made the inputs of the span under the mouse.
function paintNeeds(context) {
  const { layer: index, span } = state.hover;
  const layer = layers[index];
  const place = (number, time) => [x(time), rowTop(layer.lane[number], index) + bar / 2];
  context.save();
  context.beginPath();
  context.rect(LEFT, 0, state.width, numLanes * laneHeight);
  context.clip();
  context.strokeStyle = data.colors.critical;
  context.lineWidth = 1.5;
  for (const { maker } of layer.needs.get(span) || []) {
    const [x0, y0] = place(maker, layer.end[maker]);
    const [x1, y1] = place(span, layer.start[span]);
    const bend = Math.max(14, Math.abs(x1 - x0) / 2);
    context.beginPath();
    context.moveTo(x0, y0);
    context.bezierCurveTo(x0 + bend, y0, x1 - bend, y1, x1, y1);
    context.stroke();
  }
  context.strokeRect(x(layer.start[span]), rowTop(layer.lane[span], index), x(layer.end[span]) - x(layer.start[span]), bar);
  context.restore();
}

function paintMemory() {
  const context = prepare($("memory"), MEMORY);
  const { unit } = layers[0].memory;
  const values = layers.flatMap((layer) => layer.memory.curves.flatMap((curve) => curve.filter((_, i) => i % 2)));
  const most = values.reduce((a, b) => Math.max(a, b), 1);
  const y = (value) => MEMORY - 22 - (value / most) * (MEMORY - 50);
  context.fillStyle = data.colors.text;
  context.textAlign = "left";
  const what = unit === "bytes" ? "memory" : "microbatches of state";
  context.fillText(`${what} of lane ${state.lane}, other lanes in gray`, LEFT, 10);
  context.fillStyle = data.colors.muted;
  context.textAlign = "right";
  for (const value of [0, most]) context.fillText(amount(value, unit), LEFT - 8, y(value));
  context.fillStyle = data.colors.grid;
  for (const value of [0, most]) context.fillRect(LEFT, Math.round(y(value)), state.width, 1);
  context.save();
  context.beginPath();
  context.rect(LEFT, 0, state.width, MEMORY);
  context.clip();
  const others = layers[0].memory.curves.filter((_, lane) => lane !== state.lane);
  for (const curve of others) paintCurve(context, curve, y, { color: "#cdd3d9", width: 1, dash: [] });
  layers.forEach((layer, index) => {
    const style = { color: data.colors.text, width: 2, dash: index ? [5, 4] : [] };
    paintCurve(context, layer.memory.curves[state.lane] || [], y, style);
  });
  context.restore();
}

function paintCurve(context, curve, y, style) {
  context.strokeStyle = style.color;
  context.lineWidth = style.width;
  context.setLineDash(style.dash);
  context.beginPath();
  context.moveTo(x(0), y(0));
  for (let i = 0, value = 0; i < curve.length; i += 2) {
    context.lineTo(x(curve[i]), y(value));
    value = curve[i + 1];
    context.lineTo(x(curve[i]), y(value));
  }
  context.stroke();
}

function amount(value, unit) {
  if (unit !== "bytes") return `${value}`;
  const power = value ? Math.min(4, Math.floor(Math.log2(value) / 10)) : 0;
  return `${Number((value / 1024 ** power).toPrecision(3))} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
}

function draw() {
  state.width = Math.max(200, document.documentElement.clientWidth - LEFT - RIGHT);
  paintAxis();
  paintLanes();
  paintMemory();
  state.isDrawn = true;
}

let isPending = false;
function redraw() {
  if (isPending) return;
  isPending = true;
  requestAnimationFrame(() => {
    isPending = false;
    draw();
  });
}

// Zoom, pan and hover.

function zoom(factor, center = (state.from + state.to) / 2) {
  const span = Math.min(total, Math.max((state.to - state.from) * factor, total / 1e5, 1));
  show(center - ((center - state.from) / (state.to - state.from)) * span, span);
}

function show(from, span) {
  state.from = Math.min(Math.max(0, from), total - span);
  state.to = state.from + span;
  redraw();
}

function describe({ layer: index, span }) {
  const layer = layers[index];
  const lines = [`lane ${layer.lane[span]}${layers.length > 1 ? `, ${layer.name}` : ""}`];
  lines.push(`${format(layer.start[span])} to ${format(layer.end[span])}, ${format(layer.end[span] - layer.start[span])}`);
  for (const { maker, message } of layer.needs.get(span) || []) {
    const by = message ? `, message ${format(message.start)} to ${format(message.end)}` : "";
    lines.push(`needs ${layer.names[maker]} of lane ${layer.lane[maker]}, done ${format(layer.end[maker])}${by}`);
  }
  if (span > layer.first[layer.lane[span]]) {
    lines.push(`follows ${layer.names[span - 1]}, idle between ${format(layer.start[span] - layer.end[span - 1])}`);
  }
  if (layer.isCritical.has(span)) lines.push("on the critical path");
  return lines;
}

function hover(event) {
  const box = $("lanes").getBoundingClientRect();
  const found = hit(event.clientX - box.left, event.clientY - box.top);
  const tip = $("tip");
  tip.hidden = !found;
  if (found) {
    const name = document.createElement("b");
    name.textContent = layers[found.layer].names[found.span];
    tip.replaceChildren(name, `\n${describe(found).join("\n")}`);
    tip.style.left = `${Math.min(event.clientX + 16, window.innerWidth - tip.offsetWidth - 12)}px`;
    const below = event.clientY + 18;
    const isLow = below + tip.offsetHeight > window.innerHeight;
    tip.style.top = `${isLow ? event.clientY - tip.offsetHeight - 12 : below}px`;
  }
  if (found?.span !== state.hover?.span || found?.layer !== state.hover?.layer) {
    state.hover = found;
    redraw();
  }
}

function listen() {
  const canvas = $("lanes");
  let grabbed = null;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      const moved = ((event.deltaX || event.deltaY) / state.width) * (state.to - state.from);
      show(state.from + moved, state.to - state.from);
    } else {
      zoom(1.0015 ** event.deltaY, timeAt(event.clientX));
    }
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    grabbed = { px: event.clientX, from: state.from };
    state.lane = Math.max(0, Math.min(numLanes - 1, Math.floor(event.offsetY / laneHeight)));
    canvas.classList.add("dragged");
    redraw();
  });
  window.addEventListener("pointerup", () => {
    grabbed = null;
    canvas.classList.remove("dragged");
  });
  window.addEventListener("pointermove", (event) => {
    if (!grabbed) return;
    const span = state.to - state.from;
    show(grabbed.from - ((event.clientX - grabbed.px) / state.width) * span, span);
  });
  canvas.addEventListener("mousemove", hover);
  canvas.addEventListener("mouseleave", hover);
  canvas.addEventListener("dblclick", () => show(0, total));
  window.addEventListener("resize", redraw);
  const quarter = () => (state.to - state.from) / 4;
  const keys = {
    "+": () => zoom(0.5),
    "=": () => zoom(0.5),
    "-": () => zoom(2),
    0: () => show(0, total),
    ArrowLeft: () => show(state.from - quarter(), state.to - state.from),
    ArrowRight: () => show(state.from + quarter(), state.to - state.from),
  };
  window.addEventListener("keydown", (event) => keys[event.key]?.());
  $("in").onclick = keys["+"];
  $("out").onclick = keys["-"];
  $("all").onclick = keys[0];
  $("critical").onchange = $("transfers").onchange = redraw;
}

// Text around the picture.

function element(tag, text, parent) {
  const made = document.createElement(tag);
  made.textContent = text;
  parent.append(made);
  return made;
}

function legend() {
  data.looks.forEach((look, number) => {
    const entry = element("span", "", $("legend"));
    const sample = document.createElement("canvas");
    [sample.width, sample.height] = [24, 12];
    const context = sample.getContext("2d");
    context.fillStyle = context.createPattern(tiles[number], "repeat");
    context.fillRect(0, 0, 24, 12);
    entry.append(sample, look.name);
  });
}

function table(caption, head, rows) {
  const made = element("table", "", $("tables"));
  element("caption", caption, made);
  const first = element("tr", "", made);
  for (const text of head) element("th", text, first);
  for (const row of rows) {
    const line = element("tr", "", made);
    row.forEach((text, i) => {
      const cell = element("td", i === 0 && text.color ? text.text : text, line);
      if (i === 0 && text.color) {
        const swatch = document.createElement("span");
        swatch.className = "swatch";
        swatch.style.background = text.color;
        cell.prepend(swatch);
      }
    });
  }
}

function percent(part, whole) {
  return whole ? `${((100 * part) / whole).toFixed(1)}%` : "";
}

function bubbleTable(layer) {
  const time = layer.makespan * layer.lanes.length;
  const sums = Object.keys(data.causes).map((_, i) => layer.bubbles.reduce((sum, lane) => sum + lane[i], 0));
  const rows = Object.entries(data.causes).map(([text, color], i) => [
    { text, color }, format(sums[i]), percent(sums[i], time),
  ]);
  const all = sums.reduce((a, b) => a + b, 0);
  rows.push(["together", format(all), percent(all, time)]);
  const of = layers.length > 1 ? `, ${layer.name}` : "";
  table(`Idle time of all lanes by cause${of}`, ["", "time", "of lane time"], rows);
}

function comparisonTable({ errors, divergence }) {
  table(
    "Durations, predicted and measured",
    ["", "actions", "predicted, mean", "measured, mean", "error", "mean distance"],
    errors.map(([name, count, before, after, distance]) => [
      name, count, format(before), format(after), before ? percent(after - before, before) : "", format(distance),
    ]),
  );
  const line = $("divergence");
  line.hidden = false;
  line.textContent = divergence ? `First divergence: ${divergence.text}` : "No action diverges";
  if (divergence) line.onclick = () => show(divergence.at - total / 40, total / 20);
}

function summary() {
  $("summary").textContent = layers.map((layer) => {
    const idle = layer.bubbles.flat().reduce((a, b) => a + b, 0);
    const above = layer.bound ? `, ${percent(layer.makespan - layer.bound, layer.bound)} above the lower bound` : "";
    const share = percent(idle, layer.makespan * layer.lanes.length);
    return `${layers.length > 1 ? `${layer.name}: ` : ""}step ${format(layer.makespan)}, idle ${share} of lane time${above}`;
  }).join("; ");
}

summary();
legend();
layers.forEach(bubbleTable);
if (data.comparison) comparisonTable(data.comparison);
listen();
draw();
