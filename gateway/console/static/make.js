// The order form: one empty row of styles at a time, and a quality for the formats that have one.
(function () {
  "use strict";
  var form = document.getElementById("make");
  var rows = Array.from(document.querySelectorAll("#loras > .row")), more = document.getElementById("more-loras");

  function lastFilledRow() {
    return rows.reduce(function (last, row, index) { return row.querySelector("select").value || row.querySelector("input").value ? index : last; }, -1);
  }

  function showRows(count) {
    rows.forEach(function (row, index) { row.hidden = index >= count; });
    if (more) more.hidden = count >= rows.length;
  }

  if (more) {
    showRows(lastFilledRow() + 2);
    more.addEventListener("click", function () {
      var count = rows.filter(function (row) { return !row.hidden; }).length + 1;
      showRows(count);
      rows[count - 1].querySelector("select").focus();
    });
  }

  function limitQuality() {
    var format = form.elements.output_format.value;
    form.elements.quality.disabled = format !== "jpeg" && format !== "webp";
  }

  form.elements.output_format.addEventListener("change", limitQuality);
  limitQuality();
})();
