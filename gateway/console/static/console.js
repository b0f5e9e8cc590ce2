// Small comforts; every page works without them.
(function () {
  "use strict";

  // Times stand in UTC on the page; whoever reads them lives somewhere.
  function localise(root) {
    root.querySelectorAll("time[datetime]:not([data-local])").forEach(function (time) {
      var at = new Date(time.getAttribute("datetime"));
      if (isNaN(at)) return;
      var clock = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
      var day = { month: "short", day: "numeric" };
      time.title = time.textContent;
      time.textContent = at.toLocaleString(document.documentElement.lang, "long" in time.dataset ? Object.assign(day, clock) : clock);
      time.dataset.local = "";
    });
  }

  // A form that is sent twice by a double click would order twice.
  document.addEventListener("submit", function (event) {
    var form = event.target;
    if (form.method !== "post") return;
    if (form.dataset.sent) return event.preventDefault();
    form.dataset.sent = "yes";
    setTimeout(function () { delete form.dataset.sent; }, 5000);
  });

  document.addEventListener("DOMContentLoaded", function () { localise(document); });
  document.addEventListener("htmx:afterSwap", function (event) { localise(event.target); });
  document.addEventListener("htmx:sseMessage", function (event) { localise(event.target); });
})();
