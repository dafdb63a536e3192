// Completion of the word being typed, as a combobox with a list (WAI-ARIA Authoring Practices, "list autocomplete"):
// arrows choose, Enter or Tab takes, Escape closes.

const SHOWN = 7;

// input: a text field inside an element of class "completed". words(): those that may come, the likeliest first.
export function complete(input, words) {
  const list = document.createElement("ul");
  Object.assign(list, { id: `${input.id}-words`, role: "listbox", hidden: true, ariaLabel: "Words" });
  input.after(list);
  const said = { role: "combobox", "aria-autocomplete": "list", "aria-controls": list.id, "aria-expanded": false };
  for (const [name, value] of Object.entries(said)) input.setAttribute(name, value);
  let chosen = -1;

  const begun = () => input.value.slice(0, input.selectionStart).match(/[\p{L}'’-]*$/u)[0];

  function show(found) {
    list.replaceChildren(
      ...found.map((word, i) => {
        const option = document.createElement("li");
        Object.assign(option, { id: `${list.id}-${i}`, role: "option", textContent: word });
        option.addEventListener("pointerdown", (event) => event.preventDefault()); // the field keeps the focus
        option.addEventListener("click", () => take(word));
        return option;
      }),
    );
    list.hidden = !found.length;
    input.setAttribute("aria-expanded", !list.hidden);
    choose(-1);
  }

  function choose(index) {
    chosen = index;
    [...list.children].forEach((option, i) => option.setAttribute("aria-selected", i === index));
    if (index < 0) input.removeAttribute("aria-activedescendant");
    else input.setAttribute("aria-activedescendant", list.children[index].id);
  }

  function take(word) {
    const end = input.selectionStart;
    const start = end - begun().length;
    const rest = input.value.slice(end);
    input.setRangeText(rest.startsWith(" ") ? word : `${word} `, start, end, "end");
    input.dispatchEvent(new Event("input", { bubbles: true }));
    show([]);
  }

  input.addEventListener("input", () => {
    const start = begun().toLowerCase();
    const fits = (word) => word.startsWith(start) && word !== start;
    show(start ? words().filter(fits).slice(0, SHOWN) : []);
  });
  input.addEventListener("keydown", (event) => {
    const many = list.children.length;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (list.hidden || event.isComposing) return;
    if (step) choose(chosen < 0 ? (step > 0 ? 0 : many - 1) : (chosen + step + many) % many);
    else if (event.key === "Escape") show([]);
    else if ((event.key === "Enter" || event.key === "Tab") && chosen >= 0) take(list.children[chosen].textContent);
    else return;
    event.preventDefault();
  });
  input.addEventListener("blur", () => show([]));
}
