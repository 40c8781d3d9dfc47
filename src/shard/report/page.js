// The page, from top to bottom. With one run, colors tell values apart; with several, they tell runs apart.

const content = JSON.parse(document.getElementById("content").textContent);
const runs = content.runs, page = document.getElementById("page");
const COLORS = 8;
const color = (i) => `--color-${i % COLORS}`;
const eachStage = runs.flatMap((run) => run.stages.map((stage) => ({ run, stage })));
runs.forEach((run, i) => {
  run.color = color(i);
  for (const mark of run.marks) Object.assign(mark, { run, name: content.marks[mark.kind] });
});

function section(title, id) {
  const made = element("section", { id });
  if (title) made.append(element("h2", {}, title));
  page.append(made);
  return made;
}

function scrolling(columns, rows) {
  const head = element("tr", {}, ...columns.map((column) => element("th", {}, column)));
  const body = rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, cell))));
  return element("div", { class: "scroll" }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
}

// Top: what runs these are, where they stand, and the controls of all charts.

function drawHeader() {
  const header = element("header", {});
  header.append(element("h1", {}, runs.length === 1 ? runs[0].label : `${runs.length} runs`));
  for (const run of runs) {
    const box = element("div", { class: "run" });
    if (runs.length > 1) {
      const swatch = element("i", {});
      swatch.style.setProperty("--color", `var(${run.color})`);
      box.append(element("h2", {}, swatch, run.label));
    }
    if (run.description) box.append(element("p", { class: "description" }, run.description));
    const states = Object.entries(run.states).map(([stage, state]) => element("span", { class: `state ${state}` }, `${stage}: ${state || "not started"}`));
    if (states.length) box.append(element("p", { class: "states" }, ...states));
    const list = element("dl", { class: "figures" });
    for (const [name, value] of run.figures) list.append(element("div", {}, element("dt", {}, name), element("dd", {}, value)));
    box.append(list);
    if (!run.stages.length) box.append(element("p", { class: "empty" }, "No step of training has been recorded yet."));
    header.append(box);
  }
  page.append(header);
}

function drawControls() {
  if (!charts.length) return;
  const bar = element("nav", { class: "bar" });
  const axes = Object.entries(AXES).map(([axis, { name }]) => {
    const button = element("button", { type: "button", "aria-pressed": String(axis === view.axis), value: axis }, name);
    button.addEventListener("click", () => {
      view.axis = axis;
      for (const other of axes) other.setAttribute("aria-pressed", String(other === button));
      setRange(null);
    });
    return button;
  });
  const act = (text, title, action) => {
    const button = element("button", { type: "button", title, "aria-label": title }, text);
    button.addEventListener("click", action);
    return button;
  };
  const reset = act("all", "show everything", () => setRange(null));
  reset.disabled = true;
  document.addEventListener("viewchange", () => (reset.disabled = view.range === null));
  const smooth = act("smooth", "moving average over the raw values", () => {
    view.smooth = !view.smooth;
    smooth.setAttribute("aria-pressed", String(view.smooth));
    redrawAll();
  });
  smooth.setAttribute("aria-pressed", "true");
  bar.append(element("span", { class: "group" }, ...axes), element("span", { class: "group" }, act("+", "zoom in", () => zoomBy(0.5)), act("\u2212", "zoom out", () => zoomBy(2)), reset), smooth);
  page.querySelector("header").after(bar);
}

// Charts of what was recorded at every step, and of the held-out text.

const tick = (long) => (value, short) => (short ? formatShort(value) : long(value));
const number = tick(formatNumber);
const bytes = (value) => formatBytes(value);

const borders = runs.flatMap((run) =>
  run.stages.filter((stage) => stage.name !== "pretrain" && stage.every_step.step.length && run.stages[0] !== stage)
    .map((stage) => ({ run, step: stage.offset, text: runs.length === 1 ? stage.name : "" })));
const marks = runs.flatMap((run) => run.marks);

// One line for each stage of a run; they have one name, and the legend names it once.
function linesOf(kind, value, name, lineColor, only = null) {
  return eachStage
    .filter(({ run, stage }) => (only === null || run === only) && stage[kind].values[value]?.mean.some((mean) => mean !== null))
    .map(({ run, stage }) => ({ name: name ?? run.label, color: lineColor ?? run.color, dashed: false, run, curves: stage[kind], value }));
}

function chart(host, id, options) {
  if (!options.lines.length) return;
  const box = element("figure", { id, class: "card" });
  host.append(box);
  new Chart(box, { borders, ...options });
}

function drawCharts() {
  const grid = section("", "charts");
  grid.className = "grid-2";
  const plain = (id, value, options) =>
    chart(grid, id, { lines: linesOf("every_step", value, runs.length === 1 ? options.title.toLowerCase() : null), marks, ...options });
  plain("loss", "loss", { title: "Loss", note: "nats a token", format: number, cut: true, smooth: true, log: true });
  drawHeldout(grid);
  drawRates(grid);
  plain("gradient-norm", "grad_norm", { title: "Gradient norm", note: "before clipping", format: number, cut: true, smooth: true, log: true });
  plain("throughput", "tokens_per_second", { title: "Throughput", note: "tokens/s", format: number, smooth: true, zero: true });
  plain("memory", "memory_bytes", { title: "Memory", format: bytes, zero: true });
  const loads = { expert_least_load: "least", expert_largest_load: "largest" };
  const loadLines = Object.entries(loads).flatMap(([value, name], i) => linesOf("every_step", value, runs.length === 1 ? name : null, runs.length === 1 ? color(i) : null));
  chart(grid, "expert-load", { title: "Load of an expert", note: "beside an even one, all layers", lines: loadLines, marks, format: number, smooth: true, zero: true });
  plain("expert-dead", "expert_dead", { title: "Experts without a token", note: "all layers", format: number, zero: true });
  plain("expert-entropy", "expert_entropy", { title: "Entropy of the routers", note: "nats, mean of the layers", format: number, smooth: true, zero: true });
  plain("loss-scale", "loss_scale", { title: "Loss scale", format: number, log: true });
  if (!grid.children.length) grid.remove();
}

function drawHeldout(grid) {
  const sources = [...new Set(eachStage.flatMap(({ stage }) => Object.keys(stage.heldout.values)))];
  const options = { format: number, log: true };
  if (runs.length === 1) {
    const lines = sources.flatMap((source, i) => linesOf("heldout", source, source, color(i)));
    chart(grid, "heldout", { title: "Held-out text", note: "bits per byte", lines, ...options });
    return;
  }
  sources.forEach((source, i) => chart(grid, `heldout-${i}`, { title: `Held-out text: ${source}`, note: "bits per byte", lines: linesOf("heldout", source), ...options }));
}

function drawRates(grid) {
  const names = { lr_muon: "hidden matrices (Muon)", lr_embedding: "token table (AdamW)", lr_norm: "norms (AdamW)" };
  const same = (a, b) => eachStage.every(({ stage }) => JSON.stringify(stage.every_step.values[a]) === JSON.stringify(stage.every_step.values[b]));
  const groups = [];
  for (const key of Object.keys(names)) {
    const twin = groups.find((group) => same(group[0], key));
    if (twin) twin.push(key);
    else groups.push([key]);
  }
  const nameOf = (group) => group.map((key) => names[key]).join(", ");
  if (runs.length === 1) {
    const lines = groups.flatMap((group, i) => linesOf("every_step", group[0], nameOf(group), color(i)));
    chart(grid, "learning-rate", { title: "Learning rates", lines, format: number, zero: true });
    return;
  }
  groups.forEach((group, i) => chart(grid, `learning-rate-${i}`, { title: `Learning rate: ${nameOf(group)}`, lines: linesOf("every_step", group[0]), format: number, zero: true }));
}

function drawMarks() {
  const kinds = Object.entries(content.marks).filter(([kind]) => marks.some((mark) => mark.kind === kind));
  if (!kinds.length) return;
  const host = section("What happened", "happened");
  const keys = element("p", { class: "keys" });
  for (const [kind, name] of kinds) {
    const count = marks.filter((mark) => mark.kind === kind).length;
    keys.append(element("span", { class: kind }, element("i", { class: kind }), `${name}: ${count}`));
  }
  const rows = [...marks].sort((a, b) => a.step - b.step).slice(0, 300).map((mark) => [
    ...(runs.length > 1 ? [mark.run.label] : []), withSeparators(mark.step), mark.name, mark.text,
  ]);
  host.append(keys, element("details", { open: rows.length <= 12 }, element("summary", {}, marks.length > 300 ? `the first 300 of ${marks.length}` : "one by one"),
    scrolling([...(runs.length > 1 ? ["run"] : []), "step", "what", ""], rows)));
}

// Recipe differences, data, samples, tables.

function drawDifferences() {
  if (runs.length < 2) return;
  const host = section("Where the recipes differ", "differences");
  if (!content.differences.length) host.append(element("p", { class: "empty" }, "Nowhere."));
  else host.append(scrolling(["key", ...runs.map((run) => run.label)], content.differences.map(({ key, values }) => [key, ...values])));
}

function drawSentinel() {
  const looked = runs.filter((run) => run.sentinel);
  if (!looked.length) return;
  const host = section("Sentinel", "sentinel");
  host.append(element("p", { class: "note" }, "Singular values of the matrices that Muon trains and of their momentum. A direction is lost where its singular value is too small beside the largest for Newton-Schulz to restore; one or two are ordinary in a square matrix, many are not."));
  const map = new HeatMap(host, looked);
  drawLater.push(() => map.draw());
}

function drawData() {
  const known = runs.filter((run) => run.data.length);
  if (!known.length) return;
  const host = section("Data", "data");
  for (const run of known) {
    if (runs.length > 1) host.append(element("h3", {}, run.label));
    const stages = [...new Set(run.data.flatMap((row) => Object.keys(row.shares)))];
    const bars = element("div", { class: "mix" });
    for (const stage of stages) {
      const bar = element("div", { class: "stack" });
      run.data.forEach((row, i) => {
        const share = row.shares[stage] ?? 0;
        if (!share) return;
        const text = `${row.source} ${Number((100 * share).toPrecision(3))}%`;
        const part = element("span", { title: text }, text);
        part.style.cssText = `--color: var(${color(i)}); flex-grow: ${share}`;
        bar.append(part);
      });
      bars.append(element("b", {}, stage), bar);
    }
    const rows = run.data.map((row, i) => {
      const swatch = element("i", {});
      swatch.style.setProperty("--color", `var(${color(i)})`);
      const dropped = Object.entries(row.dropped).map(([reason, count]) => `${withSeparators(count)} ${reason}`).join(", ");
      const plain = (value) => (value === null || value === undefined ? "" : typeof value === "number" ? withSeparators(value) : value);
      return [element("span", {}, swatch, row.source), row.kind, row.license,
        ...stages.map((stage) => `${Number((100 * (row.shares[stage] ?? 0)).toPrecision(3))}%` + (stage in row.epochs ? `, ${formatNumber(row.epochs[stage])} times` : "")),
        plain(row.tokens), plain(row.read), plain(row.documents), plain(row.text), plain(row.heldout), dropped];
    });
    host.append(bars, scrolling(["source", "kind", "licence", ...stages, "tokens", "documents read", "kept", "text", "held out", "dropped"], rows));
  }
}

function drawSamples() {
  const known = runs.filter((run) => run.samples.length);
  if (!known.length) return;
  const host = section("Samples over time", "samples");
  for (const run of known) {
    if (runs.length > 1) host.append(element("h3", {}, run.label));
    for (const { prompt, texts } of run.samples) {
      const list = element("ol", { class: "texts", tabindex: "0" });
      for (const [step, text] of [...texts].reverse()) list.append(element("li", {}, element("b", {}, withSeparators(step)), element("span", { class: "text" }, element("mark", {}, prompt), text)));
      host.append(element("figure", { class: "card" }, element("h3", { class: "prompt" }, prompt.trim() || "\u2423", element("small", {}, ` ${texts.length} ${texts.length === 1 ? "sample" : "samples"}, the newest first`)), list));
    }
  }
}

// Tables of an object whose values are objects; what else there is becomes rows of name and value.
function tablesOf(value) {
  const isTable = (entry) => entry !== null && typeof entry === "object" && !Array.isArray(entry);
  const isSpread = (entry) => isTable(entry) && "median" in entry;
  const cell = (entry) => {
    if (entry === null || entry === undefined) return "";
    if (isSpread(entry)) return `${formatNumber(entry.median)} (${formatNumber(entry.min)} to ${formatNumber(entry.max)})`;
    if (Array.isArray(entry)) return entry.map(cell).join(", ");
    if (typeof entry === "object") return Object.entries(entry).map(([key, inner]) => `${key} ${cell(inner)}`).join(", ");
    return typeof entry === "number" ? formatNumber(entry) : String(entry);
  };
  const made = [], plain = [];
  for (const [key, entry] of Object.entries(value)) {
    const inner = isTable(entry) && !isSpread(entry) ? Object.values(entry) : [];
    if (key === "samples") continue;
    if (key === "tasks" && isTable(entry)) made.push(element("h3", {}, "Tasks"), tableOfTasks(entry));
    else if (inner.length && inner.every((row) => isTable(row) && !isSpread(row))) {
      const columns = [...new Set(inner.flatMap((row) => Object.keys(row)))];
      made.push(element("h3", {}, words(key)), scrolling(["", ...columns.map(words)], Object.entries(entry).map(([name, row]) => [name, ...columns.map((column) => cell(row[column]))])));
    } else if (inner.some((row) => typeof row === "number" || isSpread(row)) && inner.length > 1 && key !== "sampling") {
      made.push(element("h3", {}, words(key)), scrolling(["", ""], Object.entries(entry).map(([name, row]) => [words(name), cell(row)])));
    } else if (!isTable(entry) || isSpread(entry) || inner.length) plain.push([words(key), cell(entry)]);
  }
  if (plain.length) made.unshift(scrolling(["", ""], plain));
  return made;
}

// A row for each result of a task, or for why there is none.
function tableOfTasks(tasks) {
  const rows = Object.entries(tasks).flatMap(([name, { results, not_measured: reason }]) =>
    (results ?? [{ metric: `not measured: ${reason}` }]).map((result, i) => [i ? "" : name, result.metric, ...["value", "standard_error", "chance", "items"].map((key) => key in result ? formatNumber(result[key]) : "")]));
  return scrolling(["task", "measure", "value", "standard error", "chance", "items"], rows);
}

const words = (key) => key.replaceAll("_", " ");

function drawTables(title, key) {
  const known = runs.filter((run) => Object.keys(run[key]).length);
  if (!known.length) return;
  const host = section(title, key);
  for (const run of known) {
    if (runs.length > 1) host.append(element("h3", {}, run.label));
    host.append(...tablesOf(run[key]));
    const samples = run[key].samples;
    if (Array.isArray(samples) && samples.length) {
      host.append(element("h3", {}, "Sampled outputs"), scrolling(["prompt", "continuation"], samples.map(({ prompt, text }) => [String(prompt), element("span", { class: "text" }, String(text).startsWith(prompt) ? String(text).slice(String(prompt).length) : String(text))])));
    }
  }
}

function drawRecipes() {
  const host = section("Recipe", "recipe");
  for (const run of runs) {
    host.append(element("details", {}, element("summary", {}, runs.length === 1 ? "every key" : run.label), scrolling(["key", "value"], Object.entries(run.recipe))));
  }
}

const drawLater = [];
drawHeader();
drawDifferences();
drawCharts();
drawControls();
drawMarks();
drawSentinel();
drawData();
drawTables("Evaluation", "evaluation");
drawTables("Benchmark", "benchmark");
drawSamples();
drawRecipes();

function drawAll() {
  redrawAll();
  for (const draw of drawLater) draw();
}
drawAll();
let waiting = 0, widthBefore = page.clientWidth;
new ResizeObserver(() => {
  if (page.clientWidth === widthBefore) return;
  widthBefore = page.clientWidth;
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(drawAll);
}).observe(page);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
