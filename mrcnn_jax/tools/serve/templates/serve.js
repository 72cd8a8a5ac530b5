// Sends an image to /predict, and draws and filters the detections of the answer.
"use strict";
(() => {
  const element = (id) => document.getElementById(id);
  const canvas = element("canvas"), list = element("list"), message = element("message");
  const MAX_SIDE = 2000, MIN_SIDE = 800; // of the canvas, in pixels
  let answer, picture, masks, name, sending;

  function say(text, isError = false) {
    message.textContent = text;
    message.classList.toggle("error", isError);
  }

  async function predict(file) {
    sending?.abort(); // the server then drops the earlier image
    const current = (sending = new AbortController());
    element("result").hidden = true;
    say(`${file.name} is being processed …`);
    try {
      const form = new FormData();
      form.append("image", file);
      const response = await fetch("predict?threshold=0", { method: "POST", body: form, signal: current.signal });
      const content = await response.json().catch(() => ({ error: response.statusText }));
      if (!response.ok) throw new Error(`${file.name}: ${content.error}`);
      const bitmap = await createImageBitmap(file).catch(() => null); // not all browsers show all formats
      if (current !== sending) return;
      show(content, bitmap, file.name);
    } catch (error) {
      if (current === sending) say(error instanceof TypeError ? "The server cannot be reached." : error.message, true);
    }
  }

  function show(content, bitmap, fileName) {
    [answer, picture, name] = [content, bitmap, fileName];
    const factor = scale();
    [canvas.width, canvas.height] = [Math.round(answer.width * factor), Math.round(answer.height * factor)];
    masks = answer.detections.map((one, i) => one.segmentation && maskOf(one, color(i)));
    const counts = new Map();
    for (const one of answer.detections) counts.set(one.category, (counts.get(one.category) ?? 0) + 1);
    const chosen = element("class").value;
    element("class").replaceChildren(new Option("all classes", ""), ...[...counts.keys()].sort().map((one) => new Option(one)));
    element("class").value = counts.has(chosen) ? chosen : "";
    element("with-masks").hidden = !masks.some(Boolean);
    element("with-keypoints").hidden = !answer.skeleton;
    element("result").hidden = false;
    update();
  }

  // Canvas pixels for each pixel of the image.
  function scale() {
    const side = Math.max(answer.width, answer.height);
    return Math.min(MAX_SIDE, Math.max(MIN_SIDE, side)) / side;
  }

  const color = (index, alpha = 1) => `hsl(${(index * 137.5) % 360} 85% 62% / ${alpha})`; // hues far from each other

  // Lengths of alternating runs of zeros and ones, column by column, from COCO's compressed text: 5 bits a character,
  // least significant first; from the fourth number on, the difference to the number before the previous one.
  function runLengths(text) {
    const runs = [];
    for (let i = 0; i < text.length;) {
      let value = 0, shift = 0, bits;
      do {
        bits = text.charCodeAt(i++) - 48;
        value |= (bits & 31) << shift;
        shift += 5;
      } while (bits & 32);
      if (bits & 16) value |= -1 << shift;
      runs.push(runs.length > 2 ? value + runs.at(-2) : value);
    }
    return runs;
  }

  // A mask as an image of its box, no larger than on the canvas, and the place of the box.
  function maskOf(one, style) {
    const [height, width] = one.segmentation.size, factor = Math.min(1, scale());
    const left = Math.max(0, Math.floor(one.bbox[0]) - 1), top = Math.max(0, Math.floor(one.bbox[1]) - 1);
    const w = Math.min(width, Math.ceil(one.bbox[0] + one.bbox[2]) + 1) - left;
    const h = Math.min(height, Math.ceil(one.bbox[1] + one.bbox[3]) + 1) - top;
    const image = new OffscreenCanvas(Math.ceil(w * factor), Math.ceil(h * factor));
    const context = image.getContext("2d");
    context.fillStyle = style;
    let position = 0;
    runLengths(one.segmentation.counts).forEach((length, k) => {
      const end = position + length;
      while (k % 2 && position < end) {
        const x = Math.floor(position / height) - left, y = (position % height) - top;
        const count = Math.min(height - top - y, end - position), row = Math.floor(y * factor);
        context.fillRect(Math.floor(x * factor), row, 1, Math.max(1, Math.floor((y + count) * factor) - row));
        position += count;
      }
      position = end;
    });
    return [image, left, top, w, h];
  }

  function selected() {
    const least = Number(element("score").value), chosen = element("class").value;
    return answer.detections.flatMap((one, i) => (one.score >= least && (!chosen || one.category === chosen) ? [i] : []));
  }

  function update() {
    const shown = selected(), total = answer.detections.length;
    element("least").value = Number(element("score").value).toFixed(2);
    const limit = answer.full ? "; the model reports no more, so that objects may be missing" : "";
    say(`${name}: ${shown.length} of ${total} detections, ${answer.width} x ${answer.height} pixels${limit}`);
    canvas.setAttribute("aria-label", `${name} with ${shown.length} detections`);
    draw(shown);
    list.replaceChildren(...shown.map((i) => {
      const row = document.createElement("tr"), { category, score } = answer.detections[i];
      row.style.setProperty("--c", color(i));
      row.insertCell().textContent = category;
      row.insertCell().textContent = score.toFixed(3);
      row.cells[1].className = "number";
      return row;
    }));
  }

  function draw(shown) {
    const context = canvas.getContext("2d"), factor = scale();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (picture) context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    context.setTransform(factor, 0, 0, factor, 0, 0);
    const shownWidth = Math.min(canvas.clientWidth, (canvas.clientHeight * canvas.width) / canvas.height);
    const unit = answer.width / shownWidth; // of the page, in pixels of the image
    context.lineWidth = 2 * unit;
    for (const i of shown) {
      const one = answer.detections[i];
      context.globalAlpha = 0.5;
      if (element("masks").checked && masks[i]) context.drawImage(...masks[i]);
      context.globalAlpha = 1;
      context.strokeStyle = context.fillStyle = color(i);
      if (element("boxes").checked) context.strokeRect(...one.bbox);
      if (element("keypoints").checked && answer.skeleton) drawSkeleton(context, one.keypoints, 2 * unit);
    }
    if (element("names").checked) for (const i of [...shown].reverse()) drawName(context, i, 14 * unit);
  }

  function drawSkeleton(context, numbers, radius) {
    const points = answer.keypoint_names.map((_, k) => [numbers[3 * k] + 0.5, numbers[3 * k + 1] + 0.5]); // centers of pixels
    for (const [a, b] of answer.skeleton) {
      context.beginPath();
      context.moveTo(points[a][0], points[a][1]);
      context.lineTo(points[b][0], points[b][1]);
      context.stroke();
    }
    for (const [x, y] of points) context.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
  }

  function drawName(context, i, size) {
    const { category, score, bbox } = answer.detections[i], text = `${category} ${score.toFixed(2)}`;
    context.font = `600 ${size}px system-ui, sans-serif`;
    const width = context.measureText(text).width + size / 2;
    const x = Math.max(0, Math.min(bbox[0], answer.width - width)), y = Math.max(bbox[1], 1.25 * size);
    context.fillStyle = color(i);
    context.fillRect(x, y - 1.25 * size, width, 1.25 * size);
    context.fillStyle = "#000";
    context.fillText(text, x + size / 4, y - 0.3 * size);
  }

  function download() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(answer)], { type: "application/json" }));
    link.download = `${name.replace(/\.\w+$/, "")}.json`;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  const drop = element("drop"), file = element("file");
  file.addEventListener("change", () => {
    if (file.files.length) predict(file.files[0]);
    file.value = ""; // the same file can be chosen again
  });
  drop.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); file.click(); }
  });
  // The whole page accepts a file; otherwise the browser would leave the page to open it.
  addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  addEventListener("dragleave", () => drop.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) predict(event.dataTransfer.files[0]);
  });
  for (const id of ["class", "score", "masks", "boxes", "keypoints", "names"]) element(id).addEventListener("input", update);
  addEventListener("resize", () => element("result").hidden || update());
  element("download").addEventListener("click", download);
  element("address").textContent = new URL("predict", location.href).href;
})();
