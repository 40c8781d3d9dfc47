// The sentinel: a row for each matrix, a column for each look; a darker cell is a worse one.

const MEASURES = {
  lost: { name: "directions lost", share: (value) => value, format: (value) => `${Number((100 * value).toPrecision(3))}% lost` },
  ratio: {
    name: "smallest / largest singular value",
    // 1 is the worst: 1e-6 and below.
    share: (value) => Math.min(1, -Math.log10(Math.max(value, 1e-6)) / 6),
    format: (value) => `smallest / largest ${formatNumber(value)}`,
  },
  stable_rank: { name: "stable rank", share: null, format: (value) => `stable rank ${formatNumber(value)}` },
};

class HeatMap {
  constructor(host, runs) {
    this.runs = runs;
    this.run = runs[0];
    this.what = Object.keys(this.run.sentinel.maps)[0];
    this.measure = "lost";
    this.canvas = element("canvas", { class: "heat", role: "img", "aria-label": "Sentinel, map of matrices and steps" });
    this.tip = element("div", { class: "tip", hidden: true });
    this.scale = element("div", { class: "scale" });
    const controls = element("div", { class: "controls" });
    if (runs.length > 1) controls.append(this.choice(runs.map((run) => run.label), (i) => (this.run = runs[i])));
    const whats = Object.keys(this.run.sentinel.maps);
    controls.append(this.choice(whats, (i) => (this.what = whats[i])));
    const measures = Object.keys(MEASURES);
    controls.append(this.choice(measures.map((key) => MEASURES[key].name), (i) => (this.measure = measures[i])));
    host.append(controls, this.scale, element("div", { class: "frame" }, this.canvas, this.tip));
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerdown", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => (this.tip.hidden = true));
  }

  choice(names, choose) {
    const select = element("select", {}, ...names.map((name) => element("option", {}, name)));
    select.addEventListener("change", () => {
      choose(select.selectedIndex);
      this.draw();
    });
    return select;
  }

  draw() {
    const map = this.run.sentinel.maps[this.what], columns = this.run.sentinel.steps;
    if (!map) return;
    const values = map[this.measure], measure = MEASURES[this.measure];
    const known = values.flat().filter((value) => value !== null);
    const greatest = known.reduce((most, value) => Math.max(most, value), 0);
    // Lost shares are seen from the first on: the scale ends at what was found, at 5% at least.
    const top = this.measure === "lost" ? Math.max(0.05, greatest) : greatest || 1;
    const share = this.measure === "ratio" ? measure.share : (value) => (this.measure === "lost" ? value / top : 1 - value / top);
    const host = this.canvas.parentElement, width = host.clientWidth;
    const narrow = width < 480;
    const rowHeight = map.rows.length > 40 ? 11 : 16;
    const left = narrow ? 112 : 190, bottom = 22;
    const height = map.rows.length * rowHeight + bottom;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.canvas.style.height = `${height}px`;
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const ramp = [0, 1, 2].map((i) => color(`--heat-${i}`).match(/\d+/g).map(Number));
    const shade = (at) => {
      const i = at < 0.5 ? 0 : 1, within = at * 2 - i;
      return `rgb(${ramp[i].map((low, k) => Math.round(low + (ramp[i + 1][k] - low) * within)).join(",")})`;
    };
    const cell = (width - left) / columns.length;
    context.font = `${narrow ? 9 : 10}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    const gap = cell > 5 ? 1 : 0;
    map.rows.forEach((row, i) => {
      context.fillStyle = color("--text-2");
      context.textAlign = "right";
      context.fillText(shortName(row), left - 6, i * rowHeight + rowHeight / 2, left - 8);
      values[i].forEach((value, j) => {
        context.fillStyle = value === null ? color("--surface-2") : shade(Math.max(0, Math.min(1, share(value))));
        context.fillRect(left + j * cell, i * rowHeight, Math.max(1, cell - gap), rowHeight - 1);
      });
    });
    context.fillStyle = color("--text-2");
    const every = Math.max(1, Math.ceil(columns.length / Math.max(2, Math.floor((width - left) / 70))));
    for (let j = 0; j < columns.length; j += every) {
      context.textAlign = j === 0 ? "left" : "center";
      context.fillText(formatShort(columns[j][1]), j === 0 ? left : left + (j + 0.5) * cell, height - bottom / 2, 70);
    }
    this.layout = { left, cell, rowHeight, map, columns, values };
    const ends = this.measure === "ratio" ? ["1", "1e-6 or less"] : this.measure === "lost" ? ["0%", `${Number((100 * top).toPrecision(2))}%`] : [formatNumber(top), "0"];
    const bar = element("i");
    bar.style.background = `linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map(shade).join(",")})`;
    this.scale.replaceChildren(ends[0], bar, ends[1]);
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect(), { left, cell, rowHeight, map, columns, values } = this.layout;
    const j = Math.floor((event.clientX - box.left - left) / cell), i = Math.floor((event.clientY - box.top) / rowHeight);
    if (i < 0 || j < 0 || i >= map.rows.length || j >= columns.length) {
      this.tip.hidden = true;
      return;
    }
    const [first, last] = columns[j];
    const steps = first === last ? `step ${withSeparators(first)}` : `steps ${withSeparators(first)} to ${withSeparators(last)}, the worst`;
    const value = values[i][j];
    this.tip.replaceChildren(
      element("div", { class: "where" }, steps),
      element("div", {}, `${map.rows[i]} (${this.what}): `, element("b", {}, value === null ? "not looked at" : MEASURES[this.measure].format(value))),
    );
    this.tip.hidden = false;
    const at = event.clientX - box.left;
    this.tip.style.left = `${Math.max(0, Math.min(at + 14, box.width - this.tip.offsetWidth))}px`;
    this.tip.style.top = `${(i + 1.5) * rowHeight}px`;
  }
}

// "blocks.3.attention.query.weight" -> "3 attention.query"
function shortName(name) {
  return name.replace(/^blocks\.(\d+)\./, "$1 ").replace(/\.weight$/, "");
}
