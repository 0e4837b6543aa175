"use strict";

// What needs somebody comes first.
const states = ["failed", "retrying", "running", "queued", "converted", "unchanged", "skipped"];

const byId = (id) => document.getElementById(id);

// Everything is set as text: names come from registries.
function element(name, text, kind) {
  const e = document.createElement(name);
  if (text) e.textContent = text;
  if (kind) e.className = kind;
  return e;
}

// copy puts a text on the clipboard, which browsers offer to encrypted pages; others have the older way.
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = element("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

// short is a digest of which the beginning is shown, with a button that copies all that is named.
function short(digest, whole) {
  const span = element("span", "", "hash");
  const code = element("code", digest.replace(/^sha256:/, "").slice(0, 12));
  code.title = whole;
  const button = element("button", "copy");
  button.type = "button";
  button.title = "copy " + whole;
  button.addEventListener("click", async () => {
    await copy(whole);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
  span.append(code, " ", button);
  return span;
}

// image is a name with its tag, and what is left of the digest of the reference.
function image(name, reference) {
  const [before] = name.split("@");
  const [, digest] = reference.split("@");
  const parts = [element("span", before, "name")];
  if (digest) parts.push(" ", short(digest, reference));
  return parts;
}

function cell(name, ...content) {
  const td = element("td");
  td.dataset.name = name;
  td.append(...content);
  return td;
}

const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

// ago is a time in words.
function ago(time) {
  let n = (new Date(time) - Date.now()) / 1000;
  for (const [unit, size] of [["second", 60], ["minute", 60], ["hour", 24], ["day", 365]]) {
    if (Math.abs(n) < size) return relative.format(Math.round(n), unit);
    n /= size;
  }
  return relative.format(Math.round(n), "year");
}

function row(c) {
  const tr = element("tr");
  tr.dataset.id = c.id;
  tr.dataset.status = c.status;
  tr.dataset.text = Object.values(c).join(" ").toLowerCase();
  const time = element("time", ago(c.updated));
  time.dateTime = c.updated;
  time.title = c.updated;
  const result = c.error ? [element("span", c.error, "error")] : image(c.target || c.ref || "", c.ref || "");
  tr.append(cell("status", element("span", c.status, c.status)), cell("source", ...image(c.source, c.source)),
    cell("result", ...result), cell("MRENCLAVE", c.mr_enclave ? short(c.mr_enclave, c.mr_enclave) : ""),
    cell("changed", time));
  return tr;
}

let only = ""; // the status that is shown; empty: all

function count(status, n) {
  const li = element("li");
  const button = element("button", "", status);
  button.type = "button";
  button.setAttribute("aria-pressed", String(only === status));
  button.append(element("b", String(n)), status);
  button.addEventListener("click", () => {
    only = only === status ? "" : status;
    for (const b of document.querySelectorAll("#counts button")) {
      b.setAttribute("aria-pressed", String(b === button && only !== ""));
    }
    filter();
  });
  li.append(button);
  return li;
}

function filter() {
  const words = byId("filter").value.toLowerCase().split(/\s+/);
  let shown = 0;
  for (const tr of byId("conversions").rows) {
    tr.hidden = (only !== "" && tr.dataset.status !== only) || !words.every((w) => tr.dataset.text.includes(w));
    if (!tr.hidden) shown++;
  }
  byId("nothing").hidden = shown > 0;
  byId("nothing").textContent = byId("conversions").rows.length ? "Nothing has these words." : "Nothing here yet.";
}

// A page whose address holds credentials may not fetch what is relative to it.
const conversions = location.origin + location.pathname.replace(/[^/]*$/, "") + "api/v1/conversions";

let last = "";

async function show() {
  const trouble = byId("trouble");
  try {
    const answer = await fetch(conversions);
    if (!answer.ok) throw new Error(answer.status + " " + answer.statusText);
    const text = await answer.text();
    if (text !== last) { // else what somebody selects stays selected
      const now = JSON.parse(text);
      const order = (c) => states.indexOf(c.status);
      now.conversions.sort((a, b) => order(a) - order(b) || b.updated.localeCompare(a.updated));
      byId("counts").replaceChildren(...states.map((s) => count(s, now.counts[s] || 0)));
      byId("conversions").replaceChildren(...now.conversions.map(row));
      filter();
      last = text;
    }
    for (const t of document.querySelectorAll("time")) t.textContent = ago(t.dateTime);
    trouble.hidden = true;
  } catch (e) {
    trouble.textContent = "The service does not answer: " + e.message;
    trouble.hidden = false;
  }
  setTimeout(show, 500);
}

byId("filter").addEventListener("input", filter);
show();
