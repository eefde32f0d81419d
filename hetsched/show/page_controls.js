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
  const [start, end] = [layer.start[span], layer.end[span]];
  lines.push(`${format(start)} to ${format(end)}, lasts ${format(end - start)}`);
  const needs = (layer.needs.get(span) || []).map(({ maker, message }) => {
    const by = message ? `, message ${format(message.start)} to ${format(message.end)}` : "";
    return `needs ${layer.names[maker]} of lane ${layer.lane[maker]}, done ${format(layer.end[maker])}${by}`;
  });
  // The two parts of a fused pair may need the two parts of another.
  lines.push(...new Set(needs));
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
    const isAcross = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
    // There is nothing further out: the wheel scrolls the page.
    if (!isAcross && event.deltaY > 0 && state.to - state.from === total) return;
    event.preventDefault();
    if (isAcross) {
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
  // With one of these keys held they are the browser's own.
  window.addEventListener("keydown", (event) => event.ctrlKey || event.metaKey || event.altKey || keys[event.key]?.());
  $("in").onclick = keys["+"];
  $("out").onclick = keys["-"];
  $("all").onclick = keys[0];
  $("critical").onchange = $("transfers").onchange = redraw;
}
