// What the page does beyond being read: sorted tables, the curves of one class, and pictures chosen by what is in them.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const choices = all(".of-class");
  const inputs = { group: document.getElementById("group"), outcome: document.getElementById("outcome") };
  const slider = document.getElementById("score");

  // Tables: a button in each head, and one in the name of each class.

  const number = (text) => (/^[+-]?[\d,.]+$/.test(text) ? Number(text.replaceAll(",", "")) : NaN);

  function compare(a, b, up) {
    const x = number(a), y = number(b);
    if (Number.isNaN(x) && Number.isNaN(y)) return up * a.localeCompare(b);
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1; // what has no number comes last
    return up * (x - y);
  }

  function sort(table, column) {
    const head = table.tHead.rows[0].cells[column];
    const first = column === 0 ? "ascending" : "descending"; // names from A on, numbers from the largest on
    const other = column === 0 ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const up = order === "ascending" ? 1 : -1;
    const text = (row) => row.cells[column].textContent;
    const rows = [...table.tBodies[0].rows].sort((a, b) => compare(text(a), text(b), up));
    table.tBodies[0].append(...rows);
  }

  function button(cell, act) {
    const made = document.createElement("button");
    made.type = "button";
    made.append(...cell.childNodes);
    made.addEventListener("click", act);
    cell.append(made);
  }

  for (const table of all(".per-class table")) {
    [...table.tHead.rows[0].cells].forEach((cell, column) => button(cell, () => sort(table, column)));
    for (const cell of all("[data-class]", table)) {
      button(cell, () => choose(cell.dataset.class === choices[0].value ? "" : cell.dataset.class));
    }
  }

  // Curves: those of all classes are in the page, those of one class in bytes beside them, 255 for "no such objects".

  const means = new Map();
  for (const chart of all("[data-precision]")) {
    const averages = JSON.parse(chart.dataset.averages);
    const bytes = Uint8Array.from(atob(chart.dataset.precision), (letter) => letter.charCodeAt(0));
    const plot = chart.dataset.plot.split(" ").map(Number);
    const lines = all("polyline", chart), labels = all("b", chart);
    means.set(chart, {
      averages, bytes, plot, lines, labels,
      points: lines.map((line) => line.getAttribute("points")),
      texts: labels.map((label) => label.textContent),
    });
  }

  function curve(of, chosen, k) {
    const length = of.bytes.length / of.averages.length / 3;
    const values = of.bytes.subarray((chosen * 3 + k) * length, (chosen * 3 + k + 1) * length);
    if (values.includes(255)) return "";
    const [left, right, bottom, top] = of.plot;
    return [...values].map((value, i) => {
      const x = left + (i / (length - 1)) * (right - left);
      return `${x.toFixed(1)},${(bottom + (value / of.levels) * (top - bottom)).toFixed(1)}`;
    }).join(" ");
  }

  function showCurves(chosen) {
    for (const [chart, of] of means) {
      of.levels = Number(chart.dataset.levels);
      of.lines.forEach((line, k) => line.setAttribute("points", chosen === "" ? of.points[k] : curve(of, +chosen, k)));
      of.labels.forEach((label, k) => {
        const average = chosen === "" ? 0 : of.averages[chosen][k];
        label.textContent = chosen === "" ? of.texts[k] : average < 0 ? "–" : average.toFixed(3);
      });
    }
  }

  // Pictures. The k-th element of each layer is of the same instance. What was not asked for is faint: it says what a
  // wrong class was taken for, and what hides a missed instance.

  const pictures = all(".pictures figure").map((figure) => ({
    figure,
    instances: all("svg", figure).flatMap((svg) => {
      const layers = [".masks > g", ".boxes", ".skeletons", ".names"].map((layer) => svg.querySelector(layer).children);
      return [...layers[1]].map((box, k) => ({ ...box.dataset, parts: layers.map((layer) => layer[k]) }));
    }),
  }));

  function showInstances(picture, chosen, outcome, least) {
    let found = chosen === "" && outcome === "";
    for (const one of picture.instances) {
      const off = Number(one.score ?? 1) < least;
      const meant = (chosen === "" || one.class === chosen) && (outcome === "" || one.outcome === outcome);
      for (const part of one.parts) {
        part.classList.toggle("off", off);
        part.classList.toggle("faint", !meant);
      }
      found ||= meant && !off;
    }
    return found;
  }

  function showPictures(chosen) {
    const group = inputs.group.value, outcome = inputs.outcome.value;
    let shown = 0;
    for (const picture of pictures) {
      const found = showInstances(picture, chosen, outcome, Number(slider.value));
      const suits = found && (group === "" || picture.figure.dataset.group === group);
      picture.figure.hidden = !suits;
      shown += suits;
    }
    for (const part of all(".group")) part.hidden = !part.querySelector("figure:not([hidden])");
    const none = pictures.length ? "; no picture on this page has what was asked for" : "";
    document.getElementById("status").textContent = `${shown} of ${pictures.length} pictures${shown ? "" : none}`;
  }

  function choose(chosen) {
    for (const choice of choices) choice.value = chosen;
    for (const cell of all(".per-class [data-class]")) {
      cell.parentElement.classList.toggle("chosen", cell.dataset.class === chosen);
      cell.firstElementChild.setAttribute("aria-pressed", cell.dataset.class === chosen);
    }
    showCurves(chosen);
    showPictures(chosen);
  }

  for (const choice of choices) choice.addEventListener("change", () => choose(choice.value));
  for (const input of Object.values(inputs)) input.addEventListener("change", () => showPictures(choices[0].value));
  slider.addEventListener("input", () => {
    document.querySelector("output").textContent = Number(slider.value).toFixed(2);
    showPictures(choices[0].value);
  });
  document.documentElement.classList.add("scripts");
  choose("");
})();
