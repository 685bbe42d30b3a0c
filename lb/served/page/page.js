// SPDX-License-Identifier: Apache-2.0
"use strict";
// What this page shows comes from objects that anybody may have named. All of it is put in as text or as the
// value of an attribute, by these two functions; nothing is ever parsed as HTML.

const EVERY = 5000; // milliseconds between two looks

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(name, value);
  node.append(...children.flat().filter((child) => child !== null));
  return node;
}
const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const $ = (selector) => document.querySelector(selector);

async function get(path) {
  const response = await fetch(path);
  const found = await response.json();
  if (!response.ok) throw new Error(found.error);
  return found;
}

// Tables -------------------------------------------------------------------------------------------------

// columns: [title, how to make a cell's content from a row, class]
function table(node, columns, rows, mark = () => ({})) {
  const focused = node.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const head = el("tr", {}, columns.map(([title, , style]) => el("th", { scope: "col", class: style === "number" ? style : null }, title)));
  const body = rows.map((row) =>
    el("tr", mark(row), columns.map(([title, cell, style]) =>
      el("td", { "data-label": title, class: style || null }, el("span", {}, cell(row))))));
  node.replaceChildren(el("thead", {}, head), el("tbody", {}, body));
  if (focused !== undefined) node.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

const count = (number) => Math.round(number).toLocaleString("en-US").replaceAll(",", "\u202f");
const several = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
const percent = (part) => `${(100 * part).toFixed(part < 0.1 ? 1 : 0)} %`;
function scaled(number, unit) {
  for (const [factor, prefix] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (number >= factor) return `${(number / factor).toFixed(1)} ${prefix}${unit}`;
  return `${number >= 9.95 || number === 0 ? Math.round(number) : number.toFixed(1)} ${unit}`.trim();
}

// What counters say of the time between two looks at them; null when there was but one.
class Rates {
  before = { time: null, rows: new Map() };
  now = this.before;

  note(time, rows) {
    if (time !== this.now.time) this.before = this.now;
    this.now = { time, rows: new Map([...(time === this.now.time ? this.now.rows : []), ...rows]) };
  }

  of(key, field) {
    const [then, now] = [this.before.rows.get(key), this.now.rows.get(key)];
    const seconds = this.now.time - this.before.time;
    return then && now && seconds > 0 ? Math.max(0, now[field] - then[field]) / seconds : null;
  }
}
const told = (value, unit = "") => (value === null ? "…" : scaled(value, unit));
const bits = (bytes) => told(bytes === null ? null : 8 * bytes, "bit");

// The whole node -----------------------------------------------------------------------------------------

const ofReasons = new Rates();

function showState(now) {
  ofReasons.note(now.time, now.reasons.map((one) => [`${one.hook} ${one.reason}`, one]));
  const { agent } = now;
  $("#node").textContent = now.node ?? now.instance;
  document.title = `lbctl ${now.node ?? now.instance}`;
  $("#agent").textContent =
    `${now.version ? `version ${now.version}, ` : ""}${several(agent.services ?? 0, "Service")}, last sync ${time(agent.last_sync)}`;
  $("#problems").hidden = now.problems.length === 0;
  $("#problems ul").replaceChildren(...now.problems.map((one) => el("li", {},
    one.text, one.since ? el("span", { class: "soft" }, ` since ${time(one.since)}`) : null,
    one.next ? el("div", { class: "soft" }, `→ ${one.next}`) : null)));

  const rate = (one, field) => ofReasons.of(`${one.hook} ${one.reason}`, field);
  table($("#reasons table"), [
    ["Hook", (one) => one.hook],
    ["Reason", (one) => one.reason],
    ["Packets", (one) => count(one.packets), "number"],
    ["Packets/s", (one) => told(rate(one, "packets")), "number"],
    ["Bits/s", (one) => bits(rate(one, "bytes")), "number"],
    ["Meaning", (one) => one.meaning, "soft"],
  ], now.reasons.toSorted((a, b) => b.packets - a.packets));
  $("#quiet").hidden = now.reasons.length > 0;
  table($("#hooks table"), [
    ["Interface", (one) => one.interface || "–"],
    ["Role", (one) => one.role],
    ["Hook", (one) => one.hook],
    ["Program", (one) => `${one.program} (${one.program_id})`],
    ["Why", (one) => one.why, "soft"],
  ], now.hooks);
  table($("#maps table"), [
    ["Map", (one) => one.name],
    ["Entries", (one) => `${count(one.entries)} of ${count(one.capacity)}`, "number"],
    ["Full", (one) => [
      el("meter", { min: 0, max: one.capacity, high: 0.9 * one.capacity, optimum: 0, value: one.entries, "aria-hidden": "true" }),
      ` ${percent(one.entries / one.capacity)}`]],
    ["When full", (one) => one.when_full, "soft"],
  ], now.maps);
}

const time = (text) => (text ? new Date(text).toISOString().slice(0, 19).replace("T", " ") + " UTC" : "never");

// Services -----------------------------------------------------------------------------------------------

const STEP = 100; // Services that are listed at first, and with every click on "more"
let listed = STEP;
let chosen = ""; // NAMESPACE/NAME
const ofPorts = new Rates();
const ofBackends = new Rates();
const portKey = (one) => `${one.service} ${one.port_name} ${one.protocol}`;
const both = (one) => ({ ...one, packets: one.packets + one.reply_packets, bytes: one.bytes + one.reply_bytes });
const failed = (one) => one.refused + one.unanswered;

// Packets and bits, where they are counted; rates and key say of what.
const traffic = (counts, rates, key) => (counts ? [
  ["Packets/s", (one) => told(rates.of(key(one), "packets")), "number"],
  ["Bits/s", (one) => bits(rates.of(key(one), "bytes")), "number"],
] : []);

function showServices(found) {
  ofPorts.note(found.time, found.ports.filter((one) => one.figures).map((one) => [portKey(one), both(one.figures)]));
  const left = found.matching - found.listed;
  $("#found").textContent = `${several(found.matching, "Service")}${left ? `, the first ${count(found.listed)} are listed` : ""}`;
  $("#more-bar").hidden = left === 0;
  $("#more").textContent = `Show ${count(Math.min(left, STEP))} more`;
  $("#unserved").hidden = found.unserved.length === 0;
  $("#unserved summary").textContent = `${several(found.unserved.length, "Service")} without a VIP, as asked for`;
  $("#unserved ul").replaceChildren(...found.unserved.map((one) =>
    el("li", {}, one.service, el("span", { class: "soft" }, ` ${one.why}`))));
  table($("#services table"), [
    ["Service", (one) => {
      const button = el("button", { type: "button", "data-key": portKey(one) }, one.service);
      button.addEventListener("click", () => choose(one.service));
      return button;
    }, "name"],
    ["Port", (one) => [one.port_name, one.protocol].filter(Boolean).join(" ")],
    ["VIPs", (one) => one.vips.map((vip) => el("div", {}, vip)), "address vips"],
    ["Backends", (one) => {
      if (one.backends === 0) return "none: refused";
      const here = `${one.local} on this node`;
      return `${one.backends} (${one.terminating ? `${here}, ${one.terminating} terminating` : here})`;
    }],
    ["Connections", (one) => (one.figures ? count(one.figures.opened) : "–"), "number"],
    ["Conn./s", (one) => told(ofPorts.of(portKey(one), "opened")), "number"],
    ...traffic(found.counts_traffic, ofPorts, portKey),
    ["Failed", (one) => (one.figures ? count(failed(one.figures)) : "–"), "number"],
    ["Dropped", (one) => Object.entries(one.dropped).toSorted((a, b) => b[1] - a[1]).map(([reason, packets]) =>
      el("div", {}, `${count(packets)} ${reason}`)), "drops"],
  ], found.ports, (one) => ({
    "aria-current": one.service === chosen ? "true" : null,
    class: one.trouble || one.backends === 0 ? "trouble" : null,
  }));
}

function choose(name) {
  location.hash = `#${encodeURIComponent(name)}`;
}

// One Service --------------------------------------------------------------------------------------------

let service = null;
let picked = { vip: "", client: "outside" };

// Every VIP of every port, with its paths.
const vips = () => service.ports.flatMap((port) =>
  port.vips.map((vip, at) => ({ port, vip, id: `${vip.kind} ${vip.address}/${port.protocol}`, paths: port.paths[at] })));

function showService(found) {
  service = found;
  $("#service").hidden = false;
  $("#service-title").textContent = found.service;
  const all = vips();
  if (!all.some((one) => one.id === picked.vip)) picked.vip = all[0]?.id ?? "";
  options($("#vip"), all.map((one) => one.id), picked.vip);
  if (!$("#client input"))
    $("#client").append(...Object.entries(found.clients).map(([value, text]) =>
      el("label", {}, el("input", { type: "radio", name: "client", value }), ` ${text}`)));
  for (const input of document.querySelectorAll("#client input")) input.checked = input.value === picked.client;
  showJourney();
  const shares = new Map((path()?.ways ?? []).map((way) => [way.backend.id, way.share]));
  const one = all.find((each) => each.id === picked.vip);
  const key = (row) => `${found.service} ${row.address} ${row.id}`;
  const figures = Object.assign({}, ...found.ports.map((port) => Object.fromEntries(
    port.backends.filter((row) => port.of_backends[row.id]).map((row) => [key(row), both(port.of_backends[row.id])]))));
  ofBackends.note(found.time, Object.entries(figures));
  const number = (tell) => (row) => (figures[key(row)] ? count(tell(figures[key(row)])) : "–");
  table($("#backends"), [
    ["Address", (row) => row.address, "address"],
    ...(Object.keys(found.pods).length ? [["Pod", (row) => podAt(found.pods, row.address)]] : []),
    ["Node", (row) => (row.local ? `${row.node || "this node"} (this node)` : row.node || "not named")],
    ["State", (row) => row.state],
    ["Share", (row) => (shares.has(row.id) ? percent(shares.get(row.id)) : "no new ones"), "number"],
    ["Connections", number((each) => each.opened), "number"],
    ["Refused", number((each) => each.refused), "number"],
    ["Unanswered", number((each) => each.unanswered), "number"],
    ...traffic(found.counts_traffic, ofBackends, key),
  ], one?.port.backends ?? []);
  $("#so-far").textContent = one ? soFar(one.port) : "";
  showFoundBy(found.balanced);
  $("#changes").replaceChildren(...(found.changes.length ? found.changes.toReversed().map(change) : [
    el("li", {}, "none since the agent started, or too long ago to be remembered")]));
}

// How the network finds the addresses of a Service of type LoadBalancer; any other has nothing here.
function showFoundBy(balanced) {
  const lines = (texts) => texts.map((text) => el("div", {}, text));
  $("#found-by").hidden = balanced.length === 0;
  $("#found-by p").textContent = balanced.map((one) => one.text).join("");
  table($("#found-by table"), [
    ["Address", (one) => one.address, "address"],
    ["On the segment", (one) => lines(one.segment)],
    ["Routers", (one) => lines(one.routers)],
  ], balanced.flatMap((one) => one.addresses));
}

// The pod at an address with its port; without the namespace, which is the Service's.
const podAt = (pods, place) => (pods[place] ?? pods[place.replace(/:\d+$/, "").replace(/[[\]]/g, "")] ?? "–").split("/").at(-1);

// What a port's counters say, in a sentence.
function soFar(port) {
  if (!port.figures) return "";
  const { p50, p99 } = port.handshake_seconds;
  const dropped = Object.entries(port.dropped).map(([reason, packets]) => `${several(packets, "packet")} ${reason}`);
  return [
    several(port.figures.opened, "connection"),
    `${count(failed(port.figures))} failed`,
    p50 === null ? "" : `handshake ${(1000 * p50).toPrecision(2)} ms (half of them), ${(1000 * p99).toPrecision(2)} ms (99 %)`,
    dropped.length ? `went nowhere: ${dropped.join(", ")}` : "",
  ].filter(Boolean).join("; ") + ".";
}

function options(select, values, value) {
  if (JSON.stringify([...select.options].map((one) => one.value)) !== JSON.stringify(values))
    select.replaceChildren(...values.map((each) => el("option", { value: each }, each)));
  select.value = value;
}

const WHAT = { vips: "VIPs", backends: "backends", source_ranges: "source ranges", table_rows: "table rows" };

function change(one) {
  const after = one.seconds === null ? "" : `, ${(1000 * one.seconds).toFixed(1)} ms after`;
  const more = one.more_causes ? ` and ${one.more_causes} more` : "";
  const names = (part) => {
    const left = part.count - part.names.length;
    return part.names.join(", ") + (part.names.length && left ? ` and ${left} more` : "");
  };
  return el("li", {},
    el("span", { class: "soft" }, `${time(one.time)}, ${one.family}${after}: `), one.causes.join(", ") + more,
    el("ul", {}, one.changes.map((part) =>
      el("li", {}, `${WHAT[part.what]} ${part.verb}: ${count(part.count)} `, el("span", { class: "address" }, names(part))))));
}

const path = () => vips().find((one) => one.id === picked.vip)?.paths.find((one) => one.client === picked.client);

function showJourney() {
  const one = path();
  if (!one) return;
  const words = [
    `${service.clients[one.client]} sends to ${one.vip}`,
    `first met by ${one.hooks.join("; ")}`,
    `policy: ${one.policy.join("; ")}`,
    ...one.ways.map((way) => `${percent(way.share)} of new connections go to ${way.backend.address}, ${way.there}; ${way.back}`),
    ...(one.refused ? [one.refused] : []),
    ...one.resting,
  ];
  $("#words").replaceChildren(...words.map((text) => el("li", {}, text)));
  $("#picture").replaceChildren(picture(one, Math.floor($("#picture").clientWidth)));
}

// The picture --------------------------------------------------------------------------------------------

const LINE = 18, PAD = 10, GAP = 34, MOST_WAYS = 8;
const pen = document.createElement("canvas").getContext("2d");
pen.font = "13px system-ui, sans-serif";

// Break text into lines of at most so many pixels; a word that is longer than a line is cut.
function wrap(text, width) {
  const lines = [""];
  for (let word of String(text).split(" ")) {
    const longer = lines.at(-1) ? `${lines.at(-1)} ${word}` : word;
    if (pen.measureText(longer).width <= width) { lines[lines.length - 1] = longer; continue; }
    if (lines.at(-1)) lines.push("");
    while (pen.measureText(word).width > width) {
      let end = word.length;
      while (end > 1 && pen.measureText(word.slice(0, end)).width > width) end -= 1;
      lines[lines.length - 1] = word.slice(0, end);
      lines.push("");
      word = word.slice(end);
    }
    lines[lines.length - 1] = word;
  }
  return lines;
}

// A box with a label and texts, of which it knows the height; share (0 to 1) is drawn as a bar.
function box(label, texts, width, style = "box", share = null) {
  const lines = texts.flatMap((text) => wrap(text, width - 2 * PAD));
  const top = PAD + LINE * 0.8 + (share === null ? 0 : 12);
  return { label, lines, width, style, share, top, height: top + LINE * lines.length + PAD * 0.6 };
}

function draw(one, x, y) {
  const parts = [
    svg("rect", { x, y, width: one.width, height: one.height, rx: 6, class: one.style }),
    svg("text", { x: x + PAD, y: y + PAD + LINE * 0.5, class: one.share === null ? "label" : "share" }, one.label),
  ];
  if (one.share !== null) {
    const bar = { x: x + PAD, y: y + PAD + LINE * 0.5 + 6, height: 5, rx: 2 };
    const room = one.width - 2 * PAD;
    parts.push(svg("rect", { ...bar, width: room, class: "bar-ground" }));
    parts.push(svg("rect", { ...bar, width: Math.max(2, room * one.share), class: "bar-share" }));
  }
  one.lines.forEach((text, at) =>
    parts.push(svg("text", { x: x + PAD, y: y + one.top + LINE * (at + 0.75) }, text)));
  return parts;
}

function arrow(path, style, x, y, turn) {
  return [
    svg("path", { d: path, class: style }),
    svg("path", { d: "M0 0 L-9 -4.5 L-9 4.5 Z", class: `head-${style}`, transform: `translate(${x} ${y}) rotate(${turn})` }),
  ];
}

// The ways as boxes: the largest shares one by one, what is left together.
function ends(one, width) {
  if (one.refused) return [box("REFUSED", [one.refused], width, "refused")];
  const ways = one.ways.toSorted((a, b) => b.share - a.share);
  const boxes = ways.slice(0, MOST_WAYS).map((way) =>
    box(`${percent(way.share)}  ${way.backend.address}`, [podAt(service.pods, way.backend.address), way.there].filter((text) => text !== "–"), width, "box", way.share));
  const rest = ways.slice(MOST_WAYS);
  if (rest.length) {
    const share = rest.reduce((sum, way) => sum + way.share, 0);
    boxes.push(box(`${percent(share)}  ${several(rest.length, "more backend")}`, [], width, "box", share));
  }
  return boxes;
}

function picture(one, width) {
  const wide = width >= 900;
  const columns = wide ? [0.11, 0.17, 0.21, 0.17] : [1, 1, 1, 1];
  const room = wide ? width - 4 * GAP : width - 26;
  const steps = [
    box("CLIENT", [service.clients[one.client]], columns[0] * room),
    box("HOOK", one.hooks, columns[1] * room),
    box("VIP", [one.vip, `of ${service.service}`], columns[2] * room, "box vip"),
    box("POLICY", one.policy, columns[3] * room),
  ];
  const backs = [...new Set(one.ways.map((way) => way.back))].map((text) => `back: ${text}`);
  const last = ends(one, wide ? 0.34 * room : room - 20);
  const [parts, height] = (wide ? across : down)(steps, last, backs, width);
  const told = `${service.clients[one.client]} to ${one.vip}: ${one.refused || several(one.ways.length, "backend")}`;
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": told }, parts);
}

// From left to right, the backends one below the other, and back underneath.
function across(steps, last, backs, width) {
  const sum = last.reduce((total, each) => total + each.height + 12, -12);
  const tall = Math.max(sum, ...steps.map((each) => each.height));
  const middle = 2 + tall / 2;
  const parts = [];
  let x = 1;
  steps.forEach((each, at) => {
    parts.push(...draw(each, x, middle - each.height / 2));
    x += each.width;
    if (at < steps.length - 1) parts.push(...arrow(`M${x} ${middle} H${x + GAP - 8}`, "way", x + GAP, middle, 0));
    x += GAP;
  });
  let y = middle - sum / 2;
  const from = x - GAP;
  for (const each of last) {
    const to = y + each.height / 2;
    parts.push(...arrow(`M${from} ${middle} C${from + GAP / 2} ${middle} ${from + GAP / 2} ${to} ${x - 8} ${to}`, "way", x, to, 0));
    parts.push(...draw({ ...each, width: each.width - 2 }, x, y));
    y += each.height + 12;
  }
  if (!backs.length) return [parts, tall + 4];
  const client = 1 + steps[0].width / 2, end = x + last[0].width / 2, floor = tall + 22;
  parts.push(...arrow(`M${end} ${middle + sum / 2} V${floor} H${client} V${middle + steps[0].height / 2 + 8}`,
    "back", client, middle + steps[0].height / 2, -90));
  let at = floor;
  for (const line of backs.flatMap((text) => wrap(text, end - client - 40))) {
    at += LINE;
    parts.push(svg("text", { x: client + 20, y: at }, line));
  }
  return [parts, at + 8];
}

// From top to bottom, and back up on the right.
function down(steps, last, backs, width) {
  const parts = [];
  const gap = 22;
  let y = 1;
  let first = 0;
  for (const each of steps) {
    parts.push(...draw(each, 1, y));
    first ||= y + each.height / 2;
    y += each.height + gap;
    if (each !== steps.at(-1)) parts.push(...arrow(`M30 ${y - gap} V${y - 8}`, "way", 30, y, 90));
  }
  const from = y - gap;
  for (const each of last) {
    const to = y + each.height / 2;
    parts.push(...arrow(`M10 ${from} V${to} H13`, "way", 21, to, 0));
    parts.push(...draw(each, 21, y));
    y += each.height + 10;
  }
  const right = steps[0].width + 14;
  if (!backs.length) return [parts, y];
  parts.push(...arrow(`M${steps[0].width} ${y - 10 - last.at(-1).height / 2} H${right} V${first} H${right - 5}`,
    "back", right - 13, first, 180));
  y += 4;
  for (const line of backs.flatMap((text) => wrap(text, width - 20))) {
    y += LINE;
    parts.push(svg("text", { x: 1, y }, line));
  }
  return [parts, y + 8];
}

// Looking again ------------------------------------------------------------------------------------------

let paused = false;
let looking = false;
let again = false; // somebody asked for a look during one
let focused = true; // whether the chosen Service has had the focus

async function look() {
  again = looking;
  if (looking) return;
  looking = true;
  try {
    showState(await get("/api/state"));
    const asked = new URLSearchParams({ q: $("#search").value, sort: $("#sort").value, limit: listed });
    showServices(await get(`/api/services?${asked}`));
    if (chosen) await lookAtService();
    $("#silent").hidden = true;
  } catch (error) {
    $("#silent").textContent = `The agent does not answer (${error.message}). What is below is old; the data plane carries on.`;
    $("#silent").hidden = false;
  } finally {
    looking = false;
    document.body.dataset.looks = Number(document.body.dataset.looks ?? 0) + 1;
  }
  if (again) look();
}

async function lookAtService() {
  const name = chosen;
  try {
    const found = await get(`/api/service?service=${encodeURIComponent(name)}`);
    if (name === chosen) showService(found);
  } catch (error) {
    $("#service").hidden = false;
    $("#service-title").textContent = error.message;
    $("#found-by").hidden = true;
    for (const place of ["#picture", "#words", "#backends", "#changes"]) $(place).replaceChildren();
  }
  if (!focused) {
    focused = true;
    $("#service").focus();
  }
}

function readHash() {
  let name = location.hash.slice(1);
  try { name = decodeURIComponent(name); } catch { name = ""; }
  if (!name.includes("/") || name === chosen) return;
  chosen = name;
  picked.vip = "";
  focused = false;
  look();
}

addEventListener("hashchange", readHash);
addEventListener("resize", () => { if (service && chosen) showJourney(); });
$("#search").addEventListener("input", () => { listed = STEP; look(); });
$("#sort").addEventListener("change", () => look());
$("#more").addEventListener("click", () => { listed += STEP; look(); });
$("#vip").addEventListener("change", (event) => { picked.vip = event.target.value; showService(service); });
$("#client").addEventListener("change", (event) => { picked.client = event.target.value; showService(service); });
$("#pause").addEventListener("click", (event) => {
  paused = !paused;
  event.target.setAttribute("aria-pressed", paused);
  event.target.textContent = paused ? "Go on" : "Pause";
  if (!paused) look();
});
setInterval(() => { if (!paused && !document.hidden) look(); }, EVERY);
// On a small screen what is long is opened by whoever wants it.
for (const part of document.querySelectorAll("section > details")) part.open = innerWidth > 736;
readHash();
look();
