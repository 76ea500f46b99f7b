// Sorting, filtering and selecting in the table that the page comes with.

function makeTable(state, data) {
  const table = byId("results");
  const body = table.tBodies[0];
  const lines = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const rowOf = (line) => data.rows[line.dataset.row];

  for (const head of heads) {
    const button = element("button", { type: "button" }, head.textContent);
    head.classList.add("sorts");
    head.setAttribute("aria-sort", head.dataset.key === "stitch_id" ? "ascending" : "none");
    head.replaceChildren(button);
    button.addEventListener("click", () => sort(head));
  }

  function sort(head) {
    const column = data.columns.find(({ key }) => key === head.dataset.key);
    const before = head.getAttribute("aria-sort");
    // The first click shows the best first.
    const first = column.role === "score" ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const now = before === first ? other : first;
    for (const each of heads) each.setAttribute("aria-sort", each === head ? now : "none");
    const sign = now === "ascending" ? 1 : -1;
    const ordered = [...lines].sort((a, b) => {
      const [one, two] = [rowOf(a)[column.key], rowOf(b)[column.key]];
      // Rows without a value are last in both directions.
      if (one == null || two == null) return (one == null) - (two == null);
      return sign * compare(one, two) || rowOf(a).stitch_id - rowOf(b).stitch_id;
    });
    body.append(...ordered);
  }

  function compare(one, two) {
    if (Array.isArray(one)) return one.length - two.length || one.reduce((d, cut, i) => d || cut - two[i], 0);
    if (typeof one === "string") return one.localeCompare(two, "en", { numeric: true });
    return one - two;
  }

  const name = byId("filter-name");
  const kind = byId("filter-kind");
  const onlyFront = byId("filter-front");
  kind.append(element("option", { value: "" }, "all"), ...data.kinds.map((each) => element("option", { value: each.kind }, each.kind)));
  name.addEventListener("input", filter);
  for (const control of [kind, onlyFront]) control.addEventListener("change", filter);

  function filter() {
    const wanted = name.value.trim().toLowerCase();
    let count = 0;
    for (const line of lines) {
      const row = rowOf(line);
      line.hidden =
        !row.name.toLowerCase().includes(wanted) ||
        (kind.value !== "" && row.kind !== kind.value) ||
        (onlyFront.checked && !state.frontSet.has(row));
      count += !line.hidden;
    }
    byId("filter-count").textContent = `${count} of ${lines.length} shown`;
  }

  body.addEventListener("click", (event) => {
    const line = event.target.closest("tr");
    // Marking text to copy it is not a selection.
    if (line && !String(getSelection())) state.select(rowOf(line));
  });

  function mark() {
    for (const line of lines) line.classList.toggle("chosen", rowOf(line) === state.selected);
  }

  function redraw() {
    for (const line of lines) {
      line.classList.toggle("front", state.frontSet.has(rowOf(line)));
      line.classList.toggle("pale", !rowOf(line).compared);
    }
    filter();
    mark();
  }

  // Scrolls its own frame, not the page.
  function reveal() {
    const line = lines.find((each) => rowOf(each) === state.selected);
    const frame = table.parentElement;
    if (!line || line.hidden) return;
    const top = line.offsetTop - table.tHead.offsetHeight;
    if (top < frame.scrollTop) frame.scrollTop = top;
    else if (line.offsetTop + line.offsetHeight > frame.scrollTop + frame.clientHeight) {
      frame.scrollTop = line.offsetTop + line.offsetHeight - frame.clientHeight;
    }
  }

  return { redraw, mark, reveal };
}
