// Selects for what operating points differ in.

const asTrained = ({ name }) => !name.includes("@");

// Adds a select to the place for each key in which rows differ, and gives a test of rows. The first
// choice is the preset row's value, or all.
function makeFilters(place, data, keys, changed, preset = {}) {
  const selects = [];
  for (const key of keys) {
    const values = [...new Set(data.rows.map((row) => row[key]))].filter((value) => value != null);
    if (values.length < 2) continue;
    if (typeof values[0] === "number") values.sort((a, b) => a - b);
    const select = element("select", { id: `${place.id}-${key}` }, element("option", { value: "" }, "all"));
    select.append(...values.map((value) => element("option", { value }, value)));
    select.value = preset[key] ?? "";
    select.addEventListener("change", changed);
    const { label } = data.columns.find((column) => column.key === key);
    place.append(element("label", {}, label[0].toUpperCase() + label.slice(1), select));
    selects.push({ key, select });
  }
  return (row) => selects.every(({ key, select }) => !select.value || String(row[key]) === select.value);
}
