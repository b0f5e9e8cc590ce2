// Says a message and shows the answer while it is written. Whatever comes is put in as text, never as HTML.
(function () {
  "use strict";
  var form = document.getElementById("say"), said = document.getElementById("said");
  var field = form.elements.message, image = document.getElementById("f-image"), picked = document.getElementById("picked");

  function line(role, text) {
    var item = document.createElement("li"), words = document.createElement("p");
    item.className = "line line-" + role;
    words.textContent = text;
    item.append(words);
    said.append(item);
    item.scrollIntoView({ block: "end" });
    return words;
  }

  // A message has room for a megabyte; a model looks at a thousand pixels at most.
  async function picture() {
    if (!image.files.length) return null;
    var bitmap = await createImageBitmap(image.files[0]);
    var scale = Math.min(1, 1024 / Math.max(bitmap.width, bitmap.height));
    var canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL("image/jpeg", 0.85);
  }

  function heard(words, event) {
    var name = (/^event: (.*)$/m.exec(event) || [])[1], data = (/^data: (.*)$/m.exec(event) || [])[1];
    if (!data) return;
    var told = JSON.parse(data);
    if (name === "delta") words.textContent += told.delta;
    if (name === "error") words.parentElement.append(" ⚠ " + told.detail);
    if (name === "done") {
      words.textContent = told.response;
      form.elements.conversation_id.value = told.conversation_id;
      history.replaceState(null, "", "?conversation=" + encodeURIComponent(told.conversation_id));
    }
  }

  async function send() {
    var body = new URLSearchParams(new FormData(form)), shown = await picture();
    if (shown) body.set("image_data", shown);
    line("user", field.value);
    var words = line("assistant", "");
    field.value = ""; image.value = ""; picked.textContent = "";
    said.setAttribute("aria-busy", "true");
    try {
      var answer = await fetch(form.action, { method: "POST", body: body, headers: { Accept: "text/event-stream" } });
      if (!answer.ok) {
        var page = new DOMParser().parseFromString(await answer.text(), "text/html");
        words.textContent = "⚠ " + (page.querySelector("main .card p:nth-of-type(2)") || {}).textContent;
        return;
      }
      var reader = answer.body.pipeThrough(new TextDecoderStream()).getReader(), rest = "";
      for (;;) {
        var piece = await reader.read();
        if (piece.done) break;
        var events = (rest + piece.value).split("\n\n");
        rest = events.pop();
        events.forEach(function (event) { heard(words, event); });
      }
    } catch (error) {
      words.textContent += " ⚠ " + error.message;
    } finally {
      said.setAttribute("aria-busy", "false");
      field.focus();
    }
  }

  form.addEventListener("submit", function (event) {
    event.preventDefault();
    event.stopPropagation();
    if (said.getAttribute("aria-busy") === "false" && field.value.trim()) send();
  });
  field.addEventListener("keydown", function (event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); form.requestSubmit(); }
  });
  image.addEventListener("change", function () { picked.textContent = image.files.length ? image.files[0].name : ""; });
})();
