"use strict";

// Everything is set as text: names come from registries.
function cell(text, kind) {
  const td = document.createElement("td");
  td.textContent = text;
  if (kind) td.className = kind;
  return td;
}

function row(c) {
  const tr = document.createElement("tr");
  tr.dataset.id = c.id;
  tr.append(cell(c.status, c.status), cell(c.source), cell(c.error || c.ref || c.target), cell(c.mr_enclave || "", "hash"), cell(c.updated));
  return tr;
}

function count(status, n) {
  const li = document.createElement("li");
  const b = document.createElement("b");
  b.textContent = n;
  li.className = status;
  li.append(b, status);
  return li;
}

// A page whose address holds credentials may not fetch what is relative to it.
const conversions = location.origin + location.pathname.replace(/[^/]*$/, "") + "api/v1/conversions";

async function show() {
  const trouble = document.getElementById("trouble");
  try {
    const answer = await fetch(conversions);
    if (!answer.ok) throw new Error(answer.status + " " + answer.statusText);
    const now = await answer.json();
    const states = ["queued", "running", "retrying", "converted", "unchanged", "skipped", "failed"];
    document.getElementById("counts").replaceChildren(...states.map((s) => count(s, now.counts[s] || 0)));
    document.getElementById("conversions").replaceChildren(...now.conversions.map(row));
    trouble.hidden = true;
  } catch (e) {
    trouble.textContent = "The service does not answer: " + e.message;
    trouble.hidden = false;
  }
  setTimeout(show, 500);
}

show();
