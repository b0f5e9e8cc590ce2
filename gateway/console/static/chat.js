// Send a chat message and show the reply while it is streamed. Text from the server is inserted as text, never as HTML.
(function () {
  "use strict";
  var form = document.getElementById("chat-form"), messages = document.getElementById("messages");
  var field = form.elements.message, image = document.getElementById("f-image"), selectedFile = document.getElementById("selected-file");

  function appendMessage(role, text) {
    var item = document.createElement("li"), textElement = document.createElement("p");
    item.className = "message message-" + role;
    textElement.textContent = text;
    item.append(textElement);
    messages.append(item);
    item.scrollIntoView({ block: "end" });
    return textElement;
  }

  // Scale the picture down to 1024 pixels, which is enough for the model, so that the request stays below the body limit.
  async function readPicture() {
    if (!image.files.length) return null;
    var bitmap = await createImageBitmap(image.files[0]);
    var scale = Math.min(1, 1024 / Math.max(bitmap.width, bitmap.height));
    var canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL("image/jpeg", 0.85);
  }

  function handleEvent(textElement, event) {
    var fields = {};
    // Only line feeds end a line; in a regular expression U+2028 would, too.
    event.split("\n").forEach(function (line) { fields[line.slice(0, line.indexOf(":"))] = line.slice(line.indexOf(":") + 2); });
    if (!fields.data) return;
    var name = fields.event, data = fields.data;
    var payload = JSON.parse(data);
    if (name === "delta") textElement.textContent += payload.delta;
    if (name === "error") textElement.parentElement.append(" ⚠ " + payload.detail);
    if (name === "done") {
      textElement.textContent = payload.response;
      form.elements.conversation_id.value = payload.conversation_id;
      history.replaceState(null, "", "?conversation=" + encodeURIComponent(payload.conversation_id));
    }
  }

  async function readEvents(response, textElement) {
    var reader = response.body.pipeThrough(new TextDecoderStream()).getReader(), rest = "";
    for (;;) {
      var chunk = await reader.read();
      if (chunk.done) break;
      var events = (rest + chunk.value).split("\n\n");
      rest = events.pop();
      events.forEach(function (event) { handleEvent(textElement, event); });
    }
  }

  async function send() {
    var body = new URLSearchParams(new FormData(form)), dataUrl = await readPicture();
    if (dataUrl) body.set("image_data", dataUrl);
    appendMessage("user", field.value);
    var textElement = appendMessage("assistant", "");
    field.value = ""; image.value = ""; selectedFile.textContent = "";
    messages.setAttribute("aria-busy", "true");
    try {
      var response = await fetch(form.action, { method: "POST", body: body, headers: { Accept: "text/event-stream" } });
      if (response.ok) return await readEvents(response, textElement);
      var page = new DOMParser().parseFromString(await response.text(), "text/html");
      textElement.textContent = "⚠ " + (page.querySelector("main .card p:nth-of-type(2)") || {}).textContent;
    } catch (error) {
      textElement.textContent += " ⚠ " + error.message;
    } finally {
      messages.setAttribute("aria-busy", "false");
      field.focus();
    }
  }

  form.addEventListener("submit", function (event) {
    event.preventDefault();
    event.stopPropagation();
    if (messages.getAttribute("aria-busy") === "false" && field.value.trim()) send();
  });
  field.addEventListener("keydown", function (event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); form.requestSubmit(); }
  });
  image.addEventListener("change", function () { selectedFile.textContent = image.files.length ? image.files[0].name : ""; });
})();
