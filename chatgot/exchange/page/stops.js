// Where does an answer end? Before a line that names a speaker. What can still become such a line
// is held back, so that nothing that was shown is ever taken back.

// A speaker's line: 1 to 40 characters, no white space at its beginning, no colon but the last
const SPEAKER = /^[^\s:][^\n:]{0,39}:$/u;

/** Takes a text piece by piece; `known`: the lines `NAME:`, or null: no line ends the text. */
export class Shown {
  constructor(known) {
    this.known = known;
    this.held = ""; // follows what was shown
    this.isAtStart = true; // nothing was shown
    this.ended = false; // nothing more will be shown
  }

  /** Take the next characters; return what may be shown now. */
  feed(piece) {
    if (this.ended) return "";
    if (!this.known) return piece;
    const text = this.held + piece;
    const stop = this.findStop(text);
    const pending = this.findPending(text);
    if (stop !== null && stop <= pending) return this.finish(text, stop);
    const shown = text.slice(0, pending);
    this.held = text.slice(pending);
    this.isAtStart = this.isAtStart && !shown;
    return shown;
  }

  /** Return the rest when no further text comes. */
  end() {
    if (this.ended) return "";
    return this.finish(this.held, this.known ? this.findStop(this.held) : null);
  }

  finish(text, stop) {
    this.ended = true;
    this.held = "";
    return stop === null ? text : text.slice(0, stop);
  }

  findStop(text) {
    let start = 0;
    for (let end = text.indexOf("\n"); end >= 0; end = text.indexOf("\n", start)) {
      if (this.isSpeaker(text, start, end)) return lengthWithoutLineFeeds(text.slice(0, start));
      start = end + 1;
    }
    return null;
  }

  /** Return where in the text the earliest stop begins that may still come; else its end. */
  findPending(text) {
    const start = text.lastIndexOf("\n") + 1;
    if (!this.mayBecomeSpeaker(text, start)) return text.length;
    return lengthWithoutLineFeeds(text.slice(0, start));
  }

  isSpeaker(text, start, end) {
    const line = text.slice(start, end);
    if (!line || !this.beginsLine(start)) return false;
    if (this.known.has(line)) return true;
    return this.followsBlankLine(text, start) && SPEAKER.test(line);
  }

  mayBecomeSpeaker(text, start) {
    if (!this.beginsLine(start)) return false;
    const line = text.slice(start);
    if (!line) return true;
    for (const known of this.known) {
      if (known.startsWith(line)) return true;
    }
    if (!this.followsBlankLine(text, start)) return false;
    return SPEAKER.test(line.endsWith(":") ? line : `${line}:`);
  }

  // The line feed before a line that begins this text was shown: the line is no speaker's
  beginsLine(start) {
    return start > 0 || this.isAtStart;
  }

  followsBlankLine(text, start) {
    const before = text.slice(0, start);
    return before.endsWith("\n\n") || (before === "\n" && this.isAtStart);
  }
}

function lengthWithoutLineFeeds(text) {
  let { length } = text;
  while (length > 0 && text[length - 1] === "\n") length -= 1;
  return length;
}
