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

// As the other formats write it, so that what is far from 0 has as many digits after the point as what is near.
function format(time) {
  return `${Number((time / data.unit.ns).toFixed(4))} ${data.unit.name}`.trim();
}

function roundStep(smallest) {
  const power = 10 ** Math.floor(Math.log10(smallest));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= smallest * 0.999);
}

// The size of the font in which a text fits into a box, if there is one. A digit is 0.57 as wide as its font is high.
function fittingFont(text, width, height) {
  return [11, 8].find((size) => size <= height && 0.57 * size * text.length + size / 3 <= width);
}

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
