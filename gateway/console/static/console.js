// Progressive enhancement; every page works without this script.
(function () {
  "use strict";

  // The server renders times in UTC; show them in the browser's time zone.
  function localizeTimes(root) {
    root.querySelectorAll("time[datetime]:not([data-local])").forEach(function (time) {
      var date = new Date(time.getAttribute("datetime"));
      if (isNaN(date)) return;
      var clock = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
      var day = { month: "short", day: "numeric" };
      time.title = time.textContent;
      time.textContent = date.toLocaleString(document.documentElement.lang, "long" in time.dataset ? Object.assign(day, clock) : clock);
      time.dataset.local = "";
    });
  }

  // A double click must not submit a form twice.
  document.addEventListener("submit", function (event) {
    var form = event.target;
    if (form.method !== "post") return;
    if (form.dataset.sent) return event.preventDefault();
    form.dataset.sent = "yes";
    setTimeout(function () { delete form.dataset.sent; }, 5000);
  });

  document.addEventListener("DOMContentLoaded", function () { localizeTimes(document); });
  document.addEventListener("htmx:afterSwap", function (event) { localizeTimes(event.target); });
  document.addEventListener("htmx:sseMessage", function (event) { localizeTimes(event.target); });
})();
