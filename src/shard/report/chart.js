// Line charts that share one horizontal view: zooming or pointing in one of them does so in all.

const view = { axis: "step", range: null, smooth: true };
const charts = [];

const AXES = {
  step: { name: "steps", ticks, format: formatShort },
  tokens: { name: "tokens", ticks, format: formatShort },
  seconds: { name: "time", ticks: timeTicks, format: formatTime },
};

// The place on the present axis of a step of a run: between what was recorded around it.
function placeOf(run, step) {
  if (view.axis === "step") return step;
  for (const stage of run.stages) {
    const curves = stage.every_step;
    const i = firstAtLeast(curves.step, step);
    if (i === curves.step.length) continue;
    if (i === 0 || curves.step[i] === step) return curves[view.axis][i];
    const share = (step - curves.step[i - 1]) / (curves.step[i] - curves.step[i - 1]);
    return curves[view.axis][i - 1] + share * (curves[view.axis][i] - curves[view.axis][i - 1]);
  }
  const last = run.stages.at(-1)?.every_step;
  return last?.step.length ? last[view.axis].at(-1) : null;
}

function firstAtLeast(sorted, value) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

function fullRange() {
  let low = Infinity, high = -Infinity;
  for (const chart of charts) {
    for (const line of chart.lines) {
      const places = line.curves[view.axis];
      if (places.length) {
        low = Math.min(low, places[0]);
        high = Math.max(high, places.at(-1));
      }
    }
  }
  if (!(high >= low)) return [0, 1];
  return high > low ? [low, high] : [low - 0.5, high + 0.5];
}

function setRange(range) {
  const full = fullRange();
  if (range) {
    const width = Math.max(range[1] - range[0], (full[1] - full[0]) * 1e-4);
    const low = Math.max(full[0], Math.min(range[0], full[1] - width));
    range = [low, Math.min(full[1], low + width)];
    if (range[0] <= full[0] && range[1] >= full[1]) range = null;
  }
  view.range = range;
  redrawAll();
}

function zoomBy(factor) {
  const [low, high] = view.range ?? fullRange();
  const middle = (low + high) / 2, half = ((high - low) / 2) * factor;
  setRange([middle - half, middle + half]);
}

function redrawAll() {
  for (const chart of charts) chart.draw();
  document.dispatchEvent(new Event("viewchange"));
}

// A line: { name, color (a CSS variable), dashed, run, curves, value, inTraining }. One of several values a place (a
// bucket of steps) has low and high.
class Chart {
  constructor(host, { title, note = "", lines, marks = [], borders = [], format = formatNumber, cut = false, smooth = false, zero = false, log = false }) {
    Object.assign(this, { lines, marks, borders, format, cut, canSmooth: smooth, zero, hidden: new Set(), log: false });
    this.svg = shape("svg", { class: "plot", role: "img", tabindex: "0", "aria-label": `${title}, chart` });
    this.tip = element("div", { class: "tip", hidden: true });
    this.remark = element("span", { class: "remark" });
    const head = element("h3", {}, title);
    if (note) head.append(element("small", {}, ` ${note}`));
    const buttons = element("span", { class: "buttons" });
    if (log) {
      const button = element("button", { type: "button", "aria-pressed": "false", title: "logarithmic scale" }, "log");
      button.addEventListener("click", () => {
        this.log = !this.log;
        button.setAttribute("aria-pressed", String(this.log));
        this.draw();
      });
      buttons.append(button);
    }
    host.append(element("div", { class: "head" }, head, this.remark, buttons), this.legend(), element("div", { class: "frame" }, this.svg, this.tip));
    this.listen();
    charts.push(this);
  }

  legend() {
    const names = [...new Set(this.lines.map((line) => line.name))];
    const made = element("div", { class: "legend" });
    if (names.length < 2) return made;
    for (const name of names) {
      const line = this.lines.find((candidate) => candidate.name === name);
      const swatch = element("i", { class: line.dashed ? "dashed" : "" });
      swatch.style.setProperty("--color", `var(${line.color})`);
      const button = element("button", { type: "button", "aria-pressed": "true" }, swatch, name);
      button.addEventListener("click", () => {
        if (!this.hidden.delete(name)) this.hidden.add(name);
        button.setAttribute("aria-pressed", String(!this.hidden.has(name)));
        this.draw();
      });
      made.append(button);
    }
    return made;
  }

  shown() {
    return this.lines.filter((line) => !this.hidden.has(line.name));
  }

  // What is drawn of a line in [low, high] on `width` pixels: points [x, mean, low, high], at most two a pixel.
  pointsOf(line, range, width) {
    const places = line.curves[view.axis];
    const value = line.curves.values[line.value];
    const from = Math.max(0, firstAtLeast(places, range[0]) - 1);
    const to = Math.min(places.length, firstAtLeast(places, range[1]) + 2);
    const size = Math.max(1, Math.ceil((to - from) / Math.max(1, width * 1.5)));
    const points = [];
    for (let i = from; i < to; i += size) {
      let sum = 0, count = 0, low = Infinity, high = -Infinity;
      const end = Math.min(to, i + size);
      for (let j = i; j < end; j++) {
        if (value.mean[j] === null) continue;
        sum += value.mean[j];
        count += 1;
        low = Math.min(low, value.low ? value.low[j] : value.mean[j]);
        high = Math.max(high, value.high ? value.high[j] : value.mean[j]);
      }
      points.push(count ? [places[(i + end - 1) >> 1], sum / count, low, high] : [places[i], null, null, null]);
    }
    return points;
  }

  // Mean of the points around each one; ends are means of fewer.
  static smoothed(points) {
    const half = Math.floor(points.length / 60);
    if (half < 1) return points;
    return points.map((point, i) => {
      const reach = Math.min(half, i, points.length - 1 - i);
      let sum = 0, count = 0;
      for (let j = i - reach; j <= i + reach; j++) {
        if (points[j][1] !== null) {
          sum += points[j][1];
          count += 1;
        }
      }
      return [point[0], count ? sum / count : null];
    });
  }

  // The vertical range; single peaks far above everything else are cut off, and said to be.
  verticalRange(drawn) {
    const values = [];
    for (const { points } of drawn) {
      for (const point of points) {
        if (point[1] === null || (this.log && point[2] <= 0)) continue;
        values.push(point[2], point[3]);
      }
    }
    this.remark.textContent = "";
    if (!values.length) return [0, 1];
    values.sort((a, b) => a - b);
    let low = values[0], high = values.at(-1);
    const usual = values[Math.floor((values.length - 1) * 0.97)];
    if (this.cut && !this.log && values.length > 100 && high - low > 2 * (usual - low) && usual > low) {
      this.remark.textContent = `cut off above; greatest ${this.format(high)}`;
      high = usual + 0.25 * (usual - low);
    }
    if (this.log) return high > low ? [low, high] : [low / 2, high * 2];
    if (this.zero) low = Math.min(0, low);
    if (high === low && this.zero && low === 0) return [0, 1];
    if (high === low) return [low - (Math.abs(low) * 0.1 || 1), high + (Math.abs(high) * 0.1 || 1)];
    const margin = (high - low) * 0.05;
    return [this.zero && low === 0 ? 0 : low - margin, high + margin];
  }

  draw() {
    const width = Math.max(200, Math.floor(this.svg.parentElement.clientWidth));
    const height = width < 480 ? 200 : 240;
    const range = view.range ?? fullRange();
    const inner = { top: 12, bottom: height - 24, right: width - 10, left: 44 };
    const drawn = this.shown().map((line) => ({ line, points: this.pointsOf(line, range, width) }));
    const [bottom, top] = this.verticalRange(drawn);
    const up = this.log ? logTicks(bottom, top) : ticks(bottom, top, 4);
    inner.left = 14 + 6.4 * Math.max(3, ...up.map((value) => this.format(value, true).length));
    const transform = this.log ? Math.log10 : (value) => value;
    const x = (place) => inner.left + ((place - range[0]) / (range[1] - range[0])) * (inner.right - inner.left);
    const span = transform(top) - transform(bottom);
    const y = (value) => inner.bottom - ((transform(Math.max(value, this.log ? bottom / 10 : -Infinity)) - transform(bottom)) / span) * (inner.bottom - inner.top);
    Object.assign(this, { inner, x, y, range, width });

    const clip = `clip${charts.indexOf(this)}`;
    const grid = shape("g", { class: "grid" }), labels = shape("g", { class: "labels" });
    for (const value of up) {
      grid.append(shape("path", { d: `M${inner.left},${y(value)}H${inner.right}` }));
      labels.append(shape("text", { x: inner.left - 6, y: y(value) + 4, "text-anchor": "end" }, this.format(value, true)));
    }
    const axis = AXES[view.axis];
    const across = axis.ticks(range[0], range[1], Math.max(2, Math.floor(width / 85)));
    for (const place of across) {
      grid.append(shape("path", { d: `M${x(place)},${inner.bottom}v4` }));
      const end = x(place) > inner.right - 20;
      labels.append(shape("text", { x: end ? inner.right : x(place), y: height - 6, "text-anchor": end ? "end" : "middle" }, axis.format(place)));
    }
    const body = shape("g", { "clip-path": `url(#${clip})` });
    for (const { run, step, text } of this.borders) {
      const at = x(placeOf(run, step));
      body.append(shape("path", { class: "border", d: `M${at},${inner.top}V${inner.bottom}` }));
      body.append(shape("text", { class: "border", x: at + 4, y: inner.bottom - 6 }, text));
    }
    for (const { line, points } of drawn) this.drawLine(body, line, points);
    this.drawMarks(body);
    this.cross = shape("g", { class: "cross" });
    this.selection = shape("rect", { class: "selection", y: inner.top, height: inner.bottom - inner.top, width: 0 });
    this.svg.replaceChildren(
      shape("defs", {}, shape("clipPath", { id: clip }, shape("rect", { x: inner.left, y: inner.top - 4, width: inner.right - inner.left, height: inner.bottom - inner.top + 8 }))),
      grid, labels, body, this.selection, this.cross,
    );
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("height", height);
  }

  drawLine(body, line, points) {
    const { x, y } = this;
    const known = points.filter((point) => point[1] !== null);
    const style = `--color: var(${line.color})`;
    const add = (tag, attributes) => {
      const made = shape(tag, attributes);
      made.style.cssText = style;
      body.append(made);
    };
    const path = (list) => {
      let d = "", pen = "M";
      for (const [place, value] of list) {
        if (value === null) {
          pen = "M";
          continue;
        }
        d += `${pen}${x(place).toFixed(1)},${y(value).toFixed(1)}`;
        pen = "L";
      }
      return d;
    };
    if (known.some((point) => point[2] < point[3])) {
      const above = known.map((point) => `${x(point[0]).toFixed(1)},${y(point[3]).toFixed(1)}`);
      const below = known.map((point) => `${x(point[0]).toFixed(1)},${y(point[2]).toFixed(1)}`).reverse();
      add("polygon", { class: "band", points: [...above, ...below].join(" ") });
    }
    const smooth = this.canSmooth && view.smooth ? Chart.smoothed(points) : points;
    if (smooth !== points) add("path", { class: "line raw", d: path(points) });
    add("path", { class: `line${line.dashed ? " dashed" : ""}`, d: path(smooth) });
    const reach = known.length > 1 ? x(known.at(-1)[0]) - x(known[0][0]) : Infinity;
    if (reach > 12 * known.length) {
      for (const point of known) add("circle", { class: "dot", cx: x(point[0]), cy: y(point[1]), r: known.length === 1 ? 4 : 2.5 });
    }
  }

  drawMarks(body) {
    const taken = new Set();
    this.placed = [];
    for (const mark of this.marks) {
      const place = placeOf(mark.run, mark.step);
      if (place === null || place < this.range[0] || place > this.range[1]) continue;
      const at = this.x(place);
      this.placed.push({ at, mark });
      const key = `${mark.kind} ${Math.round(at)}`;
      if (taken.has(key)) continue;
      taken.add(key);
      const { top, bottom } = this.inner;
      body.append(shape("path", { class: `mark ${mark.kind}`, d: `M${at},${top}V${bottom}` }));
      body.append(shape("path", { class: `flag ${mark.kind}`, d: `M${at - 4},${top - 4}h8l-4,7z` }));
    }
  }

  // Pointing: the values of every line at the place, and what happened there.

  showCross(place) {
    this.cross?.replaceChildren();
    if (!this.cross || place === null || place < this.range[0] || place > this.range[1]) return [];
    const at = this.x(place);
    this.cross.append(shape("path", { d: `M${at},${this.inner.top}V${this.inner.bottom}` }));
    const found = [];
    for (const line of this.shown()) {
      const places = line.curves[view.axis], value = line.curves.values[line.value];
      if (!places.length || place < places[0] - (this.range[1] - this.range[0]) * 0.02 || place > places.at(-1) + (this.range[1] - this.range[0]) * 0.02) continue;
      let i = Math.min(firstAtLeast(places, place), places.length - 1);
      if (i > 0 && place - places[i - 1] < places[i] - place) i -= 1;
      if (value.mean[i] === null) continue;
      const dot = shape("circle", { cx: this.x(places[i]), cy: Math.max(this.inner.top, this.y(value.mean[i])), r: 3.5 });
      dot.style.cssText = `--color: var(${line.color})`;
      this.cross.append(dot);
      found.push({ line, i, value });
    }
    return found;
  }

  showTip(place, found) {
    const rows = [];
    if (found.length) {
      const { curves } = found[0].line, i = found[0].i;
      rows.push(element("div", { class: "where" }, `step ${withSeparators(curves.step[i])}, ${formatShort(curves.tokens[i] ?? 0, 4)} tokens, ${formatTime(curves.seconds[i])} of training`));
    }
    for (const { line, i, value } of found) {
      const swatch = element("i", { class: line.dashed ? "dashed" : "" });
      swatch.style.setProperty("--color", `var(${line.color})`);
      let text = this.format(value.mean[i]);
      if (value.low && value.low[i] !== value.high[i]) text += ` (${this.format(value.low[i])} to ${this.format(value.high[i])} in ${line.curves.bucket} steps)`;
      rows.push(element("div", {}, swatch, `${line.name}: `, element("b", {}, text)));
    }
    const at = this.x(place);
    const near = this.placed.filter((placed) => Math.abs(placed.at - at) < 6);
    for (const { mark } of near.slice(0, 4)) {
      rows.push(element("div", { class: `happened ${mark.kind}` }, `${runs.length > 1 ? `${mark.run.label}, ` : ""}step ${withSeparators(mark.step)}: ${mark.name}${mark.text ? `, ${mark.text}` : ""}`));
    }
    if (near.length > 4) rows.push(element("div", { class: "happened" }, `and ${near.length - 4} more`));
    this.tip.replaceChildren(...rows);
    this.tip.hidden = !rows.length;
    const room = this.width - this.tip.offsetWidth;
    const left = at + 14 > room ? at - 14 - this.tip.offsetWidth : at + 14;
    this.tip.style.left = `${Math.max(0, Math.min(left, room))}px`;
  }

  point(place) {
    for (const chart of charts) {
      const found = chart.showCross(place);
      if (chart === this && place !== null) chart.showTip(place, found);
      else chart.tip.hidden = true;
    }
  }

  placeAt(event) {
    const box = this.svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * this.width;
    const share = (at - this.inner.left) / (this.inner.right - this.inner.left);
    return this.range[0] + Math.max(0, Math.min(1, share)) * (this.range[1] - this.range[0]);
  }

  // A mouse zooms by dragging, fingers by pinching; one finger points.
  listen() {
    const svg = this.svg, fingers = new Map();
    let begun = null, pinch = null;
    svg.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse") {
        if (event.button === 0) {
          begun = this.placeAt(event);
          svg.setPointerCapture(event.pointerId);
        }
        return;
      }
      fingers.set(event.pointerId, event.clientX);
      if (fingers.size === 2) pinch = { range: this.range, gap: this.gap(fingers) };
      this.point(this.placeAt(event));
    });
    svg.addEventListener("pointermove", (event) => {
      const place = this.placeAt(event);
      if (fingers.has(event.pointerId)) fingers.set(event.pointerId, event.clientX);
      if (pinch && fingers.size === 2) {
        const factor = pinch.gap / Math.max(20, this.gap(fingers));
        const middle = (pinch.range[0] + pinch.range[1]) / 2, half = ((pinch.range[1] - pinch.range[0]) / 2) * factor;
        setRange([middle - half, middle + half]);
        return;
      }
      if (begun !== null) {
        const [low, high] = [this.x(Math.min(begun, place)), this.x(Math.max(begun, place))];
        this.selection.setAttribute("x", low);
        this.selection.setAttribute("width", high - low);
      }
      this.point(place);
    });
    const end = (event) => {
      fingers.delete(event.pointerId);
      if (fingers.size < 2) pinch = null;
      if (begun === null) return;
      const place = this.placeAt(event), from = begun;
      begun = null;
      this.selection.setAttribute("width", 0);
      if (event.type === "pointerup" && Math.abs(this.x(place) - this.x(from)) > 8) setRange([Math.min(from, place), Math.max(from, place)]);
    };
    svg.addEventListener("pointerup", end);
    svg.addEventListener("pointercancel", end);
    svg.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") this.point(null);
    });
    svg.addEventListener("dblclick", () => setRange(null));
    svg.addEventListener("blur", () => this.point(null));
    let cursor = null;
    svg.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -0.01, ArrowRight: 0.01 }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      const width = this.range[1] - this.range[0];
      cursor = Math.max(this.range[0], Math.min(this.range[1], (cursor ?? this.range[0]) + by * width));
      this.point(cursor);
    });
  }

  gap(fingers) {
    const [a, b] = [...fingers.values()];
    return Math.abs(a - b);
  }
}
