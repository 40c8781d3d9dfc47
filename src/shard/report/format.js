"use strict";

// Numbers and elements. Text of a run reaches the page only through textContent.

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") made.className = value;
    else if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function shape(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function withSeparators(value) {
  return value.toLocaleString("en-US");
}

function formatNumber(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "none";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e15) return withSeparators(value);
  if (size >= 1000) return withSeparators(Math.round(value));
  if (size !== 0 && size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
  return String(Number(value.toPrecision(5)));
}

function formatShort(value, digits = 6) {
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]]) {
    if (size >= unit) return `${Number((value / unit).toPrecision(digits))}${letter}`;
  }
  if (size !== 0 && size < 1e-3) return value.toExponential(1).replace(".0e", "e");
  return String(Number(value.toPrecision(digits)));
}

function formatBytes(value) {
  for (const [unit, name] of [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (Math.abs(value) >= unit) return `${Number((value / unit).toPrecision(4))} ${name}`;
  }
  return `${Math.round(value)} B`;
}

function formatTime(seconds) {
  if (seconds < 60) return `${Number(seconds.toPrecision(3))}s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes}m${String(Math.floor(seconds % 60)).padStart(2, "0")}s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours}h${String(minutes % 60).padStart(2, "0")}m`;
  return `${Math.floor(hours / 24)}d${String(hours % 24).padStart(2, "0")}h`;
}

// Round numbers within [low, high], about `count` of them. `bases` are the steps that count as round.
function ticks(low, high, count, bases = [1, 2, 5, 10]) {
  const raw = (high - low) / Math.max(1, count);
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = bases.map((base) => base * power).find((size) => size >= raw * 0.999) ?? 10 * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function timeTicks(low, high, count) {
  const sizes = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 432000, 864000, 2592000];
  const raw = (high - low) / Math.max(1, count);
  const step = raw < 1 ? null : sizes.find((size) => size >= raw) ?? 2592000;
  if (step === null) return ticks(low, high, count);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(i * step);
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const base of [1, 2, 5]) {
      const value = Number((base * 10 ** power).toPrecision(12));
      if (value >= low && value <= high) found.push(value);
    }
  }
  if (found.length > 7) return found.filter((value) => Number.isInteger(Math.round(Math.log10(value) * 1e9) / 1e9));
  return found.length > 1 ? found : ticks(low, high, 4);
}
