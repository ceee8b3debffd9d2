// Text to ids and back, character by character: the end-of-text token is id 0, then each character
// has an id.

const END_OF_TEXT = "<|endoftext|>";

export const END_OF_TEXT_ID = 0;

/**
 * allowedRepeat: tokens that may repeat without a penalty by DRY.
 * lineFeeds: the ids whose text has a line feed in it.
 */
export class Characters {
  constructor(characters) {
    this.tokens = [END_OF_TEXT, ...characters];
    this.ids = new Map(this.tokens.map((token, id) => [token, id]));
    this.ids.delete(END_OF_TEXT);
    this.allowedRepeat = 12;
    this.lineFeeds = new Set(this.ids.has("\n") ? [this.ids.get("\n")] : []);
    const marks = [..."?_*#. "];
    this.substitute = marks.find((mark) => this.ids.has(mark)) ?? this.tokens[1];
  }

  get size() {
    return this.tokens.length;
  }

  /** Return whether all characters of a text are known. */
  canWrite(text) {
    return [...text].every((character) => this.ids.has(character));
  }

  /** Return the ids of a text; a character that is not known becomes a question mark. */
  encode(text) {
    const other = this.ids.get(this.substitute);
    const ids = [];
    splitDocuments(text).forEach((document, i) => {
      if (i > 0) ids.push(END_OF_TEXT_ID);
      for (const character of document) ids.push(this.ids.get(character) ?? other);
    });
    return ids;
  }

  /** Return the text that a token adds; the end-of-text token adds none. */
  textOf(id) {
    return id === END_OF_TEXT_ID ? "" : this.tokens[id];
  }

  /** Return what turns ids into text one by one. */
  decoder() {
    return { feed: (id) => this.textOf(id), end: () => "" };
  }
}

/** Return what is before, between and after the lines of a text that are END_OF_TEXT. */
export function splitDocuments(text) {
  // In JavaScript, ^ and $ match at each line end of Unicode, not at "\n" alone
  const documents = [[]];
  text.split("\n").forEach((line, i) => {
    const isEnd = line === END_OF_TEXT;
    if (i > 0) documents.at(-1).push("\n");
    if (isEnd) documents.push([]);
    else documents.at(-1).push(line);
  });
  return documents.map((parts) => parts.join(""));
}
