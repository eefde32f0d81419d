// Text around the picture, and the start of it all.

function element(tag, text, parent) {
  const made = document.createElement(tag);
  made.textContent = text;
  parent.append(made);
  return made;
}

function sample(name, fill) {
  const entry = element("span", "", $("legend"));
  const made = document.createElement("canvas");
  [made.width, made.height] = [24, 12];
  const context = made.getContext("2d");
  context.fillStyle = fill(context);
  context.fillRect(0, 0, 24, 12);
  entry.append(made, name);
}

function legend() {
  for (const number of data.legend.looks) {
    sample(data.looks[number].name, (context) => context.createPattern(tiles[number], "repeat"));
  }
  sample("idle", () => data.colors.lane);
  element("span", data.legend.key, $("legend"));
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
  return `${whole ? ((100 * part) / whole).toFixed(1) : "0.0"}%`;
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
    errors.map(([name, count, before, after, share, distance]) => [
      name, count, format(before), format(after), share, format(distance),
    ]),
  );
  const line = $("divergence");
  line.hidden = false;
  line.textContent = divergence ? `First divergence: ${divergence.text}` : "No action diverges";
  if (divergence) line.onclick = () => show(divergence.at - total / 40, total / 20);
}

function summary() {
  $("summary").textContent = layers.map((layer, index) => {
    const idle = layer.bubbles.flat().reduce((a, b) => a + b, 0);
    const above = layer.bound ? `, ${percent(layer.makespan - layer.bound, layer.bound)} above the lower bound` : "";
    const share = percent(idle, layer.makespan * layer.lanes.length);
    const name = layers.length > 1 ? `${layer.name}: ` : "";
    const scaling = index === 0 && data.comparison ? data.comparison.scaling : "";
    return `${name}step ${format(layer.makespan)}${scaling}, idle ${share} of lane time${above}`;
  }).join("; ");
}

summary();
legend();
layers.forEach(bubbleTable);
if (data.comparison) comparisonTable(data.comparison);
listen();
draw();
