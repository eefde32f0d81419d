// Draws what state says onto the three canvases.

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
  tile.width = tile.height = data.tile;
  const context = tile.getContext("2d");
  context.fillStyle = look.fill;
  context.fillRect(0, 0, data.tile, data.tile);
  context.strokeStyle = look.ink;
  context.globalAlpha = 0.38;
  context.beginPath();
  for (const [x0, y0, x1, y1] of data.hatches[look.hatch]) {
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
  }
  context.stroke();
  return tile;
}

const tiles = data.looks.map(hatched);
const isHatched = data.looks.map((look) => look.hatch !== "none");

function ticks(most) {
  // A nanosecond cannot be divided: of a step that takes no time there is one tick.
  if (total <= 1) return [[0, "0"]];
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
    if (right > covered && right > left) paintSpan(context, layer, span, { top, left, width: right - left, patterns });
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
  const [left, right] = [Math.max(box.left, LEFT), Math.min(box.left + width, LEFT + state.width)];
  layer.labels[span].split("&").forEach((label, i) => {
    const size = fittingFont(label, width, height);
    if (size) paintName(context, label, looks[i], { middle: (left + right) / 2, size, y: box.top + (i + 0.5) * height });
  });
}

// A name on a hatch stands on the plain fill.
function paintName(context, label, number, { middle, size, y }) {
  const look = data.looks[number];
  context.font = `${size}px ${FONT}`;
  if (isHatched[number]) {
    const room = context.measureText(label).width + 4;
    context.fillStyle = look.fill;
    context.fillRect(middle - room / 2, y - size / 2 - 1.5, room, size + 3);
  }
  context.fillStyle = look.ink;
  context.fillText(label, middle, y + 0.5);
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
    if (number < 0 || layer.end[number] <= layer.start[number]) continue;
    if (layer.end[number] < state.from || layer.start[number] > state.to) continue;
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
  const dashed = layers.slice(1).map((layer) => `, ${layer.name} dashed`).join("");
  context.fillText(`${what} of lane ${state.lane}${dashed}, other lanes in gray`, LEFT, 10);
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
