// Which view is shown? One at a time; the arrow keys go from tab to tab.

import { byId } from "./dom.js";

export class Tabs {
  /** views: the ids of the views; each has a tab `tab-ID`. onShow gets the id of what is shown. */
  constructor(views, onShow) {
    this.views = views;
    this.onShow = onShow;
    this.tabs = views.map((view) => byId(`tab-${view}`));
    this.tabs.forEach((tab, i) => {
      tab.addEventListener("click", () => this.show(views[i]));
      tab.addEventListener("keydown", (event) => this.onKey(event));
    });
  }

  /** Show a view, the first one where there is none of this id. */
  show(view, takesFocus = false) {
    const wanted = this.views.includes(view) ? view : this.views[0];
    this.views.forEach((name, i) => {
      const isShown = name === wanted;
      byId(name).hidden = !isShown;
      this.tabs[i].setAttribute("aria-selected", String(isShown));
      this.tabs[i].tabIndex = isShown ? 0 : -1;
      if (isShown && takesFocus) this.tabs[i].focus();
    });
    this.onShow(wanted);
  }

  onKey(event) {
    const here = this.tabs.indexOf(event.currentTarget);
    const count = this.tabs.length;
    const to = {
      ArrowRight: (here + 1) % count,
      ArrowLeft: (here + count - 1) % count,
      Home: 0,
      End: count - 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.show(this.views[to], true);
  }
}
