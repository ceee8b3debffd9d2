// What does this browser remember? Its storage may be full, damaged or forbidden: nothing raises.

// pages opened from disk share one storage; a page that is a model names what is its own
const PREFIX = `chatgot:${document.documentElement.dataset.store ?? ""}`;

/** Return a stored value if `accepts` does, else the fallback. */
export function read(name, accepts, fallback) {
  try {
    const value = JSON.parse(localStorage.getItem(PREFIX + name));
    return value !== null && accepts(value) ? value : fallback;
  } catch {
    return fallback;
  }
}

/** Store a value; return whether there was room for it. */
export function write(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** Forget a value. */
export function forget(name) {
  try {
    localStorage.removeItem(PREFIX + name);
  } catch {
    // forbidden storage has nothing to forget
  }
}

/** Return the names of all stored values that begin with `start`. */
export function namesOf(start) {
  try {
    return Object.keys(localStorage)
      .filter((key) => key.startsWith(PREFIX + start))
      .map((key) => key.slice(PREFIX.length));
  } catch {
    return [];
  }
}
