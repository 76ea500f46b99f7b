// Sorting, filtering and selecting in the table that the page comes with.

// A browser lays out so many lines without a pause; further ones follow when they are scrolled to.
const BATCH = 600;

function makeTable(state, data) {
  const table = byId("results");
  const body = table.tBodies[0];
  const frame = table.parentElement;
  const lines = new Map([...body.rows].map((line) => [data.rows[line.dataset.row], line]));
  const heads = [...table.tHead.rows[0].cells];
  const collator = new Intl.Collator("en", { numeric: true });
  let sorted = [...data.rows];
  let matching = sorted;

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
    sorted.sort((a, b) => {
      const [one, two] = [a[column.key], b[column.key]];
      // Rows without a value are last in both directions.
      if (one == null || two == null) return (one == null) - (two == null);
      return sign * compare(one, two) || a.stitch_id - b.stitch_id;
    });
    filter();
  }

  function compare(one, two) {
    if (Array.isArray(one)) return one.length - two.length || one.reduce((d, cut, i) => d || cut - two[i], 0);
    if (typeof one === "string") return collator.compare(one, two);
    return one - two;
  }

  const name = byId("filter-name");
  const onlyFront = byId("filter-front");
  const isChosen = makeFilters(byId("filter"), data, ["kind", "image_size", "num_proposals"], filter);
  name.addEventListener("input", filter);
  onlyFront.addEventListener("change", filter);

  function filter() {
    const wanted = name.value.trim().toLowerCase();
    matching = sorted.filter(
      (row) => row.name.toLowerCase().includes(wanted) && isChosen(row) && (!onlyFront.checked || state.frontSet.has(row)),
    );
    body.replaceChildren();
    show(BATCH);
    byId("filter-count").textContent = `${matching.length} of ${data.rows.length} shown`;
  }

  // Adds lines until so many are in the page.
  function show(count) {
    body.append(...matching.slice(body.rows.length, count).map((row) => lines.get(row)));
  }

  window.addEventListener("beforeprint", () => show(matching.length));
  frame.addEventListener("scroll", () => {
    if (frame.scrollTop + 2 * frame.clientHeight > frame.scrollHeight) show(body.rows.length + BATCH);
  });

  body.addEventListener("click", (event) => {
    const line = event.target.closest("tr");
    // Marking text to copy it is not a selection.
    if (line && !String(getSelection())) state.select(data.rows[line.dataset.row]);
  });

  function mark() {
    for (const [row, line] of lines) line.classList.toggle("chosen", row === state.selected);
  }

  function redraw() {
    for (const [row, line] of lines) {
      line.classList.toggle("front", state.frontSet.has(row));
      line.classList.toggle("pale", !row.compared);
    }
    filter();
    mark();
  }

  // Scrolls its own frame, not the page.
  function reveal() {
    const place = matching.indexOf(state.selected);
    if (place < 0) return;
    if (place >= body.rows.length) show(place + BATCH);
    const line = body.rows[place];
    const top = line.offsetTop - table.tHead.offsetHeight;
    if (top < frame.scrollTop) frame.scrollTop = top;
    else if (line.offsetTop + line.offsetHeight > frame.scrollTop + frame.clientHeight) {
      frame.scrollTop = line.offsetTop + line.offsetHeight - frame.clientHeight;
    }
  }

  return { redraw, mark, reveal };
}
