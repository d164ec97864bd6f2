"use strict";
(function () {
  document.documentElement.classList.add("scripted");

  // Readout: what a pointer rests on is also written under the chart.
  document.querySelectorAll("figure").forEach(function (figure) {
    var out = figure.querySelector(".readout");
    if (!out) return;
    var idle = out.textContent;
    function show(event) {
      var tip = event.target.closest("[data-tip]");
      out.textContent = tip ? tip.getAttribute("data-tip") : idle;
    }
    figure.addEventListener("pointerover", show);
    figure.addEventListener("click", show);
    figure.addEventListener("pointerleave", function () { out.textContent = idle; });
  });

  // Profile: sort, search and page through all rows; only one page of rows is ever in the document.
  var source = document.getElementById("profile-rows");
  if (!source) return;
  var rows = JSON.parse(source.textContent), size = 25, page = 0, column = 1, down = true, shown = rows;
  var body = document.querySelector("#profile-table tbody");
  var heads = document.querySelectorAll("#profile-table th");
  var find = document.getElementById("profile-find"), where = document.getElementById("profile-where");
  var back = document.getElementById("profile-back"), on = document.getElementById("profile-on");

  function said(row, i) {
    if (i === 0) return row[0];
    if (i === 3) return row[3] ? "yes" : "no";
    if (row[i] === null) return i === 1 ? "never" : "—";
    return String(Number(row[i].toPrecision(3)));
  }
  function draw() {
    var pages = Math.max(1, Math.ceil(shown.length / size)), fragment = document.createDocumentFragment();
    page = Math.min(Math.max(page, 0), pages - 1);
    shown.slice(page * size, (page + 1) * size).forEach(function (row) {
      var line = document.createElement("tr");
      for (var i = 0; i < 4; i++) {
        var cell = document.createElement("td");
        cell.className = i === 0 ? "hash" : i < 3 ? "num" : "";
        cell.textContent = i === 0 ? said(row, 0).slice(0, 16) : said(row, i);
        if (i === 0) cell.title = row[0];
        line.appendChild(cell);
      }
      fragment.appendChild(line);
    });
    body.replaceChildren(fragment);
    where.textContent = shown.length.toLocaleString("en") + " images, page " + (page + 1) + " of " + pages;
    back.disabled = page === 0;
    on.disabled = page === pages - 1;
  }
  function order() {
    var sign = down ? -1 : 1;
    rows.sort(function (a, b) {
      var x = a[column], y = b[column];
      if (x === y) return a[0] < b[0] ? -1 : 1;
      if (x === null) return column === 1 ? -sign : 1;
      if (y === null) return column === 1 ? sign : -1;
      return x < y ? -sign : sign;
    });
    heads.forEach(function (head, i) {
      if (i === column) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    filter();
  }
  function filter() {
    var wanted = find.value.trim().toLowerCase();
    shown = wanted ? rows.filter(function (row) { return row[0].indexOf(wanted) === 0; }) : rows;
    page = 0;
    draw();
  }
  heads.forEach(function (head, i) {
    head.querySelector("button").addEventListener("click", function () {
      down = column === i ? !down : i !== 0 && i !== 2;
      column = i;
      order();
    });
  });
  find.addEventListener("input", filter);
  back.addEventListener("click", function () { page -= 1; draw(); });
  on.addEventListener("click", function () { page += 1; draw(); });
  order();
})();
