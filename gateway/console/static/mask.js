// Paint a mask over the picture to start from. The mask has the picture's size; it becomes the file of the field `mask` when the form is sent.
(function () {
  "use strict";
  var MAX_PIXELS = 25000000, MAX_VIEW_SIDE = 1024;  // The workers read as many by default (IMAGE_INPUT_MAX_PIXELS).
  var form = document.getElementById("make"), editor = document.getElementById("mask-editor");
  if (!window.createImageBitmap) return;
  var view = editor.querySelector("canvas"), brush = document.getElementById("f-brush"), status = editor.querySelector("[role=status]");
  var limit = document.getElementById("mask-limit");
  var paint = getComputedStyle(document.documentElement).getPropertyValue("--mask").trim();
  var tint = document.createElement("canvas"), mask = document.createElement("canvas");
  var picture = null, tool = "draw", changed = false, loads = 0, maskLoads = 0;
  var pen = null, cursor = null, isDown = false;  // Positions are pixels of the picture; `cursor` and `isDown` belong to the keyboard.

  function reference(name) {
    return form.querySelector("input[name=" + name + "_ref]");
  }

  // The chosen file, else the picture of a job that the form names.
  async function chosenPicture(name) {
    var file = form.elements[name].files[0], ref = reference(name);
    try {
      if (file) return await createImageBitmap(file);
      if (!ref || !ref.checked) return null;
      var response = await fetch(ref.dataset.link);
      return response.ok ? await createImageBitmap(await response.blob()) : null;
    } catch (error) {
      return null;  // The server says what is wrong with the file.
    }
  }

  async function openPicture() {
    var load = ++loads, opened = await chosenPicture("source");
    if (load !== loads) return;
    picture = opened && fitMask(opened) ? opened : null;
    editor.hidden = !picture;
    limit.textContent = opened && !picture ? limit.dataset.text : "";
    if (!picture) return;
    var scale = Math.min(1, MAX_VIEW_SIDE / Math.max(picture.width, picture.height));
    view.width = tint.width = Math.max(1, Math.round(picture.width * scale));
    view.height = tint.height = Math.max(1, Math.round(picture.height * scale));
    cursor = [picture.width / 2, picture.height / 2];
    await openMask();
  }

  // Whether the mask can have the picture's size. Browsers with a smaller limit give a canvas that keeps nothing.
  function fitMask(opened) {
    if (opened.width * opened.height > MAX_PIXELS) return false;
    mask.width = opened.width;
    mask.height = opened.height;
    try {
      var context = mask.getContext("2d");
      context.globalCompositeOperation = "source-over";
      context.fillRect(0, 0, 1, 1);
      var kept = context.getImageData(0, 0, 1, 1).data[3] > 0;
      context.clearRect(0, 0, 1, 1);
      return kept;
    } catch (error) {
      return false;
    }
  }

  // A mask of another size is not shown: the server refuses it.
  async function openMask() {
    var load = ++maskLoads, opened = picture && await chosenPicture("mask");
    if (load !== maskLoads || !picture) return;
    mask.getContext("2d").clearRect(0, 0, mask.width, mask.height);
    if (opened && opened.width === mask.width && opened.height === mask.height) drawMask(opened);
    changed = false;
    render();
  }

  // White is painted; in a mask with transparent pixels, those are.
  function drawMask(bitmap) {
    var context = mask.getContext("2d");
    context.globalCompositeOperation = "source-over";  // Erasing leaves another one.
    context.drawImage(bitmap, 0, 0);
    var image = context.getImageData(0, 0, mask.width, mask.height), data = image.data, transparent = false, index;
    for (index = 3; index < data.length; index += 4) transparent = transparent || data[index] < 255;
    for (index = 0; index < data.length; index += 4) {
      data[index + 3] = transparent ? 255 - data[index + 3] : data[index];
      data[index] = data[index + 1] = data[index + 2] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  function render() {
    var context = view.getContext("2d"), layer = tint.getContext("2d");
    layer.globalCompositeOperation = "copy";
    layer.drawImage(mask, 0, 0, tint.width, tint.height);
    layer.globalCompositeOperation = "source-in";
    layer.fillStyle = paint;
    layer.fillRect(0, 0, tint.width, tint.height);
    context.globalAlpha = 1;
    context.drawImage(picture, 0, 0, view.width, view.height);
    context.globalAlpha = 0.6;
    context.drawImage(tint, 0, 0);
    if (document.activeElement === view) drawCursor(context);
  }

  function drawCursor(context) {
    var scale = view.width / mask.width;
    context.globalAlpha = 1;
    ["#000", "#fff"].forEach(function (color, index) {
      context.beginPath();
      context.arc(cursor[0] * scale, cursor[1] * scale, Math.max(2, brushSize() * scale / 2 - index), 0, 2 * Math.PI);
      context.strokeStyle = color;
      context.stroke();
    });
  }

  function brushSize() {
    return Math.max(1, Math.max(mask.width, mask.height) * brush.value / 100);
  }

  function stroke(from, to) {
    var context = mask.getContext("2d");
    context.globalCompositeOperation = tool === "erase" ? "destination-out" : "source-over";
    context.strokeStyle = "#fff";
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = brushSize();
    context.beginPath();
    context.moveTo(from[0], from[1]);
    context.lineTo(to[0] + 0.01, to[1]);  // A line without a length is not drawn.
    context.stroke();
    changed = true;
    cursor = to;
    render();
  }

  function position(event) {
    var box = view.getBoundingClientRect();
    return [(event.clientX - box.left) * mask.width / box.width, (event.clientY - box.top) * mask.height / box.height];
  }

  view.addEventListener("pointerdown", function (event) {
    if (event.button || !event.isPrimary) return;
    view.setPointerCapture(event.pointerId);
    pen = position(event);
    stroke(pen, pen);
  });
  view.addEventListener("pointermove", function (event) {
    if (!pen || !event.isPrimary) return;
    var next = position(event);
    stroke(pen, next);
    pen = next;
  });
  ["pointerup", "pointercancel"].forEach(function (name) {
    view.addEventListener(name, function (event) { if (event.isPrimary) pen = null; });
  });

  var DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  function setDown(down) {
    if (isDown !== down) status.textContent = down ? editor.dataset.down : editor.dataset.up;
    isDown = down;
  }

  view.addEventListener("keydown", function (event) {
    var direction = DIRECTIONS[event.key], before = cursor, step = Math.max(1, brushSize() / 2);
    if (event.key === " ") {
      setDown(!isDown);
      if (isDown) stroke(cursor, cursor);
    } else if (direction) {
      cursor = [Math.min(mask.width, Math.max(0, before[0] + direction[0] * step)), Math.min(mask.height, Math.max(0, before[1] + direction[1] * step))];
      if (isDown) stroke(before, cursor); else render();
    } else return;
    event.preventDefault();
  });
  view.addEventListener("focus", render);
  view.addEventListener("blur", function () { setDown(false); render(); });

  editor.querySelectorAll("[data-tool]").forEach(function (button) {
    button.addEventListener("click", function () {
      if (button.dataset.tool === "clear") {
        mask.getContext("2d").clearRect(0, 0, mask.width, mask.height);
        changed = true;
        return render();
      }
      tool = button.dataset.tool;
      editor.querySelectorAll("[aria-pressed]").forEach(function (other) { other.setAttribute("aria-pressed", String(other === button)); });
    });
  });

  // A PNG: white where it is painted, black elsewhere; null when nothing is painted.
  function maskFile() {
    var data = mask.getContext("2d").getImageData(0, 0, mask.width, mask.height).data, painted = false;
    for (var index = 3; index < data.length && !painted; index += 4) painted = data[index] > 0;
    if (!painted) return null;
    var file = document.createElement("canvas"), context = file.getContext("2d");
    file.width = mask.width;
    file.height = mask.height;
    context.fillRect(0, 0, file.width, file.height);
    context.drawImage(mask, 0, 0);
    var bytes = atob(file.toDataURL("image/png").split(",")[1]);
    return new File([Uint8Array.from(bytes, function (character) { return character.charCodeAt(0); })], "mask.png", { type: "image/png" });
  }

  form.addEventListener("submit", function () {
    if (!picture || !changed) return;
    var file = maskFile(), files = new DataTransfer();
    if (file) files.items.add(file);
    form.elements.mask.files = files.files;
    if (reference("mask")) reference("mask").checked = false;
    changed = false;
  });

  // The mask of another picture does not belong to a new one.
  form.elements.source.addEventListener("change", function () {
    if (reference("mask")) reference("mask").checked = false;
    openPicture();
  });
  form.elements.mask.addEventListener("change", openMask);
  [["source", openPicture], ["mask", openMask]].forEach(function (entry) {
    if (reference(entry[0])) reference(entry[0]).addEventListener("change", entry[1]);
  });
  openPicture();
})();
