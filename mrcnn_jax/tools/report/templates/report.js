// Sorts tables, shows the curves of one class, and filters images by class, group, outcome and score.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const classMenus = all(".class-select");
  const inputs = { group: document.getElementById("group"), outcome: document.getElementById("outcome") };
  const slider = document.getElementById("score");

  // Tables: a button in each column heading to sort, and one in each class name to select the class.

  const parseNumber = (text) => (/^[+-]?[\d,.]+$/.test(text) ? Number(text.replaceAll(",", "")) : NaN);

  function compare(a, b, sign) {
    const x = parseNumber(a), y = parseNumber(b);
    if (Number.isNaN(x) && Number.isNaN(y)) return sign * a.localeCompare(b);
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1; // undefined values come last
    return sign * (x - y);
  }

  function sortTable(table, column) {
    const heading = table.tHead.rows[0].cells[column];
    const first = column === 0 ? "ascending" : "descending"; // names from A to Z, numbers from the largest
    const second = column === 0 ? "descending" : "ascending";
    const order = heading.getAttribute("aria-sort") === first ? second : first;
    for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const text = (row) => row.cells[column].textContent;
    const rows = [...table.tBodies[0].rows].sort((a, b) => compare(text(a), text(b), sign));
    table.tBodies[0].append(...rows);
  }

  function addButton(cell, onClick) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    button.addEventListener("click", onClick);
    cell.append(button);
  }

  for (const table of all(".per-class table")) {
    [...table.tHead.rows[0].cells].forEach((cell, column) => addButton(cell, () => sortTable(table, column)));
    for (const cell of all("[data-class]", table)) {
      addButton(cell, () => selectClass(cell.dataset.class === classMenus[0].value ? "" : cell.dataset.class));
    }
  }

  // Curves: the page has those of all classes; data attributes have those of single classes, as bytes. 255 is undefined.

  const charts = all("[data-precision]").map((figure) => {
    const lines = all("polyline", figure), labels = all("b", figure);
    return {
      lines, labels,
      averages: JSON.parse(figure.dataset.averages),
      bytes: Uint8Array.from(atob(figure.dataset.precision), (character) => character.charCodeAt(0)),
      plot: figure.dataset.plot.split(" ").map(Number),
      levels: Number(figure.dataset.levels),
      points: lines.map((line) => line.getAttribute("points")),
      texts: labels.map((label) => label.textContent),
    };
  });

  function curvePoints(chart, classIndex, k) {
    const length = chart.bytes.length / chart.averages.length / 3;
    const values = chart.bytes.subarray((classIndex * 3 + k) * length, (classIndex * 3 + k + 1) * length);
    if (values.includes(255)) return "";
    const [left, right, bottom, top] = chart.plot;
    return [...values].map((value, i) => {
      const x = left + (i / (length - 1)) * (right - left);
      return `${x.toFixed(1)},${(bottom + (value / chart.levels) * (top - bottom)).toFixed(1)}`;
    }).join(" ");
  }

  function showCurves(selected) {
    for (const chart of charts) {
      chart.lines.forEach((line, k) => {
        line.setAttribute("points", selected === "" ? chart.points[k] : curvePoints(chart, +selected, k));
      });
      chart.labels.forEach((label, k) => {
        const average = selected === "" ? 0 : chart.averages[selected][k];
        label.textContent = selected === "" ? chart.texts[k] : average < 0 ? "–" : average.toFixed(3);
      });
    }
  }

  // Images: the k-th element of each layer belongs to the same instance. Instances of other classes and outcomes are
  // dimmed, not hidden: they explain wrong classes and missed instances.

  const images = all(".images figure").map((figure) => ({
    figure,
    instances: all("svg", figure).flatMap((svg) => {
      const layers = [".masks > g", ".boxes", ".skeletons", ".names"].map((layer) => svg.querySelector(layer).children);
      return [...layers[1]].map((box, k) => ({ ...box.dataset, parts: layers.map((layer) => layer[k]) }));
    }),
  }));

  // Returns whether the image has a visible instance that matches the filters.
  function showInstances(image, selected, outcome, threshold) {
    let matching = selected === "" && outcome === "";
    for (const instance of image.instances) {
      const below = Number(instance.score ?? 1) < threshold;
      const matches =
        (selected === "" || instance.class === selected) && (outcome === "" || instance.outcome === outcome);
      for (const part of instance.parts) {
        part.classList.toggle("below-threshold", below);
        part.classList.toggle("dimmed", !matches);
      }
      matching ||= matches && !below;
    }
    return matching;
  }

  function showImages(selected) {
    const group = inputs.group.value, outcome = inputs.outcome.value;
    let count = 0;
    for (const image of images) {
      const matching = showInstances(image, selected, outcome, Number(slider.value));
      const visible = matching && (group === "" || image.figure.dataset.group === group);
      image.figure.hidden = !visible;
      count += visible;
    }
    for (const part of all(".group")) part.hidden = !part.querySelector("figure:not([hidden])");
    const hint = images.length && !count ? "; no image on this page matches" : "";
    document.getElementById("status").textContent = `${count} of ${images.length} images${hint}`;
  }

  function selectClass(selected) {
    for (const menu of classMenus) menu.value = selected;
    for (const cell of all(".per-class [data-class]")) {
      cell.parentElement.classList.toggle("selected", cell.dataset.class === selected);
      cell.firstElementChild.setAttribute("aria-pressed", cell.dataset.class === selected);
    }
    showCurves(selected);
    showImages(selected);
  }

  for (const menu of classMenus) menu.addEventListener("change", () => selectClass(menu.value));
  for (const input of Object.values(inputs)) input.addEventListener("change", () => showImages(classMenus[0].value));
  slider.addEventListener("input", () => {
    document.querySelector("output").textContent = Number(slider.value).toFixed(2);
    showImages(classMenus[0].value);
  });
  document.documentElement.classList.add("js");
  selectClass("");
})();
