// Numbers and times as people read them. Pure: the time zone is an argument.

export type Zone = "utc" | "local";

function two(value: number): string {
  return String(value).padStart(2, "0");
}

interface Parts {
  year: number;
  month: number;
  day: number;
  hour: number;
  minute: number;
  second: number;
}

function parts(ms: number, zone: Zone): Parts {
  const d = new Date(ms);
  return zone === "utc"
    ? { year: d.getUTCFullYear(), month: d.getUTCMonth() + 1, day: d.getUTCDate(), hour: d.getUTCHours(), minute: d.getUTCMinutes(), second: d.getUTCSeconds() }
    : { year: d.getFullYear(), month: d.getMonth() + 1, day: d.getDate(), hour: d.getHours(), minute: d.getMinutes(), second: d.getSeconds() };
}

export function formatDate(ms: number, zone: Zone): string {
  const p = parts(ms, zone);
  return `${p.year}-${two(p.month)}-${two(p.day)}`;
}

/** `10:51:57` */
export function formatClock(ms: number, zone: Zone): string {
  const p = parts(ms, zone);
  return `${two(p.hour)}:${two(p.minute)}:${two(p.second)}`;
}

export function formatDateTime(ms: number, zone: Zone): string {
  return `${formatDate(ms, zone)} ${formatClock(ms, zone)}`;
}

/** The part of a second of an RFC 3339 text, `.123` of `...57.123456Z`, cut off and not rounded. */
export function fraction(rfc3339: string, digits: number): string {
  const found = /\.(\d+)/.exec(rfc3339)?.[1] ?? "";
  return `.${found.padEnd(digits, "0").slice(0, digits)}`;
}

/** The value of a datetime-local box, seconds included. */
export function toDateTimeBox(ms: number, zone: Zone): string {
  return `${formatDate(ms, zone)}T${formatClock(ms, zone)}`;
}

/** The instant that a datetime-local box means in that zone; null when it is empty or broken. */
export function fromDateTimeBox(value: string, zone: Zone): number | null {
  if (value === "") return null;
  const ms = Date.parse(zone === "utc" ? `${value}Z` : value);
  return Number.isNaN(ms) ? null : ms;
}

/** `UTC+02:00`; the offset is in minutes as Date.getTimezoneOffset gives it (west is positive). */
export function zoneName(zone: Zone, offsetMinutes: number): string {
  if (zone === "utc" || offsetMinutes === 0) return "UTC";
  const size = Math.abs(offsetMinutes);
  return `UTC${offsetMinutes < 0 ? "+" : "−"}${two(Math.floor(size / 60))}:${two(size % 60)}`;
}

/** Thousands parted by a thin blank, as `12 345`: no reader takes it for a decimal point. */
export function formatInteger(value: number): string {
  return String(Math.round(value)).replace(/\B(?=(\d{3})+(?!\d))/g, "\u202f");
}

export function plural(count: number, one: string, many = `${one}s`): string {
  return `${formatInteger(count)} ${count === 1 ? one : many}`;
}

/** Three significant digits without an exponent and without idle zeros. */
function short(value: number): string {
  const size = Math.abs(value);
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : 2;
  const fixed = value.toFixed(digits);
  return fixed.includes(".") ? fixed.replace(/\.?0+$/, "") : fixed;
}

/** `value` in steps of `base`, with the prefix that leaves it below one step. */
function scaled(value: number, base: number, prefixes: readonly string[]): string {
  let step = 0;
  while (Math.abs(value) >= base * 0.9995 && step < prefixes.length - 1) {
    value /= base;
    step += 1;
  }
  return `${short(value)}${prefixes[step] ?? ""}`;
}

export function formatCount(value: number): string {
  if (value !== 0 && Math.abs(value) < 0.01) return value.toExponential(1);
  return scaled(value, 1000, ["", "k", "M", "G", "T", "P"]);
}

export function formatBytes(value: number): string {
  return scaled(value, 1024, ["\u202fB", "\u202fKiB", "\u202fMiB", "\u202fGiB", "\u202fTiB", "\u202fPiB"]);
}

export function formatSeconds(value: number): string {
  const size = Math.abs(value);
  if (size === 0) return "0\u202fs";
  if (size < 1e-6) return `${short(value * 1e9)}\u202fns`;
  if (size < 1e-3) return `${short(value * 1e6)}\u202fµs`;
  if (size < 1) return `${short(value * 1e3)}\u202fms`;
  if (size < 120) return `${short(value)}\u202fs`;
  return formatSpan(value * 1000);
}

/** A length of time in its two largest units: `3h 12m`, `45s`. */
export function formatSpan(ms: number): string {
  const seconds = Math.round(ms / 1000);
  if (seconds < 60) return `${seconds}s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return seconds % 60 === 0 ? `${minutes}m` : `${minutes}m ${seconds % 60}s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 === 0 ? `${hours}h` : `${hours}h ${minutes % 60}m`;
  const days = Math.floor(hours / 24);
  return hours % 24 === 0 ? `${days}d` : `${days}d ${hours % 24}h`;
}

export function formatLatency(ns: number): string {
  return formatSeconds(ns / 1e9);
}

/** `10.0.0.1:80`, `[2001:db8::1]:80`; a port that is absent is left out. */
export function formatEndpoint(address: string | undefined, port: number | undefined): string {
  if (address === undefined) return port === undefined ? "" : `:${port}`;
  if (port === undefined) return address;
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}

/** A value of a column in its unit; `rate` puts "/s" behind it. */
export function formatValue(value: number | null | undefined, unit: string, rate: boolean): string {
  if (value === null || value === undefined) return "—";
  const tail = rate ? "/s" : "";
  if (unit === "bytes") return formatBytes(value) + tail;
  // A rate of seconds is seconds per second: a share of one CPU, or of the time.
  if (unit === "seconds") return rate ? `${formatCount(value * 100)}\u202f%` : formatSeconds(value);
  return formatCount(value) + tail;
}
