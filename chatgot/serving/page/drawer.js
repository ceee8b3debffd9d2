// How does a side list open where the screen has no room for it? Over the page, until it is left.

/** Let `button` open and close `drawer`; return a function that closes it. */
export function makeDrawer(button, drawer) {
  const isOpen = () => drawer.dataset.open !== undefined;

  function set(opens) {
    if (opens) drawer.dataset.open = "";
    else delete drawer.dataset.open;
    button.setAttribute("aria-expanded", String(opens));
  }

  button.addEventListener("click", () => {
    set(!isOpen());
    if (isOpen()) drawer.querySelector("button").focus();
  });
  drawer.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !isOpen()) return;
    event.stopPropagation();
    set(false);
    button.focus();
  });
  document.addEventListener("pointerdown", (event) => {
    const isOutside = !drawer.contains(event.target) && !button.contains(event.target);
    if (isOutside && isOpen()) set(false);
  });
  return () => set(false);
}
