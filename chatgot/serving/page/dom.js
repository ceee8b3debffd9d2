// How is an element made? All text goes through createTextNode: it never becomes HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Return an element; a function as an attribute is a listener, null and false leave it out. */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Return an SVG element. */
export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") {
      element.addEventListener(name, value);
    } else if (value !== null && value !== false && value !== undefined) {
      // ARIA has no attributes without a value
      const isBare = value === true && !name.startsWith("aria-");
      element.setAttribute(name, isBare ? "" : value);
    }
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Return the element of the page that has this id. */
export function byId(id) {
  return document.getElementById(id);
}

/** Return a number with commas between its thousands. */
export function grouped(number) {
  return Number(number).toLocaleString("en-US");
}

/** Return a probability as a percentage that is as precise as it is small. */
export function percent(probability) {
  const value = 100 * probability;
  if (value < 0.1) return "<0.1%";
  if (value < 10) return `${value.toFixed(1)}%`;
  return `${Math.round(value)}%`;
}

/** Copy a text; return whether the browser took it. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text);
  }
}

// The clipboard API exists only on https and on this machine's own address
function copyBySelection(text) {
  const focused = document.activeElement;
  const area = make("textarea", { class: "unseen" });
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return copied;
}

/** Let the browser save a text as a file. */
export function downloadText(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
